"""vLLM behind its OpenAI server, as clients reach it over HTTP: what the server adds to the engine's own times."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from profiler.errors import EngineError
from profiler.options import Recording
from profiler.replicas import engine_facts, installed
from profiler.start import RECORD_TO, engine_arguments, failures, vllm_config
from simulator.errors import UserError

SERVER_PACKAGES = ("aiohttp", "fastapi", "httptools", "openai", "prometheus_fastapi_instrumentator", "starlette", "uvicorn", "uvloop")
"""What vLLM's server imports and its engine does not need."""
START_S = 1200.0
KEEP_ALIVE_S = 2.0
"""For which an idle connection is kept: for less time than the server does (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`, 5 s), else a request may be
sent on one that the server is closing at that moment, and is lost."""
ROOT = Path(__file__).resolve().parent.parent


def require_server() -> None:
    """Says what is missing before an engine starts.

    Raises:
        UserError: a package of vLLM's server is not installed.
    """
    if missing := [name for name in SERVER_PACKAGES if find_spec(name) is None]:
        raise UserError(f"client=http needs vLLM's server, and {', '.join(missing)} is not installed here; client=engine does without")


class ServerReplica:
    """`vllm serve` in a process of its own; this process is its HTTP client."""

    client = (
        "HTTP client of vLLM's OpenAI server (/v1/completions, streaming, prompts as token ids, no tokenizer), API server and engine core"
        " in processes of their own; dummy weights, output lengths forced with ignore_eos"
    )

    def __init__(self, options: Recording, raw: Path, gpus: str | None) -> None:
        """Starts the server on `gpus` (None: on those that are there); blocks until it can serve."""
        self.outstanding, self.heard_s = 0, 0.0
        self.raw = raw
        self._sampling, self._installed = options.sampling, installed(options)
        self._session: Any = None
        with failures("vLLM did not start"):
            self.config = vllm_config(options)
            self._url = f"http://127.0.0.1:{_free_port()}"
            arguments = engine_arguments(options) | {"scheduler_cls": self.config.scheduler_config.scheduler_cls}
            self._model = arguments["model"]
            server = {"host": "127.0.0.1", "port": self._url.rpartition(":")[2], "disable_uvicorn_access_log": True}
            command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags(arguments | server)]
            path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
            environment = os.environ | {"PYTHONPATH": path, RECORD_TO: str(raw), "VLLM_SERVER_DEV_MODE": "1"}
            if gpus is not None:
                environment["CUDA_VISIBLE_DEVICES"] = gpus
            with (raw / "server.log").open("w") as log:
                # A group of its own: what is signalled to this process's group must not end the server, too.
                self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, process_group=0)  # noqa: S603 — this very Python, words of ours
            try:
                self._wait_until_ready()
            except KeyboardInterrupt:
                self._process.terminate()
                raise

    def _wait_until_ready(self) -> None:
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s:
            if self._process.poll() is not None:
                raise EngineError(f"vLLM did not start: {self._last_error()}")
            with suppress(OSError, HTTPException):
                connection = HTTPConnection(self._url.removeprefix("http://"), timeout=5)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.5)
        self._process.terminate()
        raise EngineError(f"vLLM did not start: its server did not answer within {START_S:.0f} s")

    def _last_error(self) -> str:
        """The first error named in the log: those that follow are its consequences."""
        lines = (self.raw / "server.log").read_text(errors="replace").splitlines()
        named = [line.rpartition("] ")[2].strip() for line in lines if "Error: " in line]
        return (named or lines[-1:] or ["no word of why"])[0][:400]

    async def install(self) -> None:
        """Has the worker record its launches."""
        for method, argument in self._installed:
            await self._rpc(method, argument)

    async def generate(self, name: str, prompt: list[int], output_tokens: int) -> AsyncIterator[int]:
        body = {
            "model": self._model, "prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True, "stream": True,
            "temperature": self._sampling.temperature, "top_p": self._sampling.top_p,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }  # fmt: skip
        so_far = 0
        async with self._client().post(f"{self._url}/v1/completions", json=body, headers={"X-Request-Id": name}) as response:
            if response.status != 200:
                raise EngineError(f"vLLM's server answered {response.status}: {' '.join((await response.text()).split())[:400]}")
            async for line in response.content:
                if not line.startswith(b"data: {"):
                    continue
                tokens = json.loads(line[6:])["usage"]["completion_tokens"]
                if tokens > so_far:
                    yield tokens - so_far
                    so_far = tokens

    def engine_name(self, name: str) -> str:
        """As vLLM's server calls the request (0.26 `entrypoints/openai/completion/serving.py`)."""
        return f"cmpl-{name}-0"

    async def facts(self) -> dict[str, Any]:
        """Of the same configuration; the blocks are asked of the worker."""
        pool: dict[str, int] = await self._rpc("probe_pool")
        return engine_facts(self.config) | pool

    async def host_speed(self) -> dict[str, float]:
        """Of the first worker's host (`profiler/host.py`)."""
        speed: dict[str, float] = await self._rpc("probe_host")
        return speed

    async def launches(self) -> dict[str, list[Any]]:
        """As columns, from the first worker."""
        columns: dict[str, list[Any]] = await self._rpc("probe_launches")
        return columns

    async def forget_prefixes(self) -> None:
        async with self._client().post(f"{self._url}/reset_prefix_cache"):
            pass

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()

    async def _rpc(self, method: str, *args: Any) -> Any:
        async with self._client().post(f"{self._url}/collective_rpc", json={"method": method, "args": list(args)}) as response:
            if response.status != 200:
                raise EngineError(f"vLLM's server answered {response.status} to {method}")
            text = await response.text()
        return json.loads(text)["results"][0] if text else None

    def _client(self) -> Any:
        import aiohttp

        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=None, sock_read=None)
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        return self._session


def flags(arguments: dict[str, Any]) -> list[str]:
    """vLLM's options as words of its command line."""
    words = []
    for name, value in arguments.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            words += [f"--{flag}", json.dumps(value) if isinstance(value, dict | list) else str(value)]
    return words


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
