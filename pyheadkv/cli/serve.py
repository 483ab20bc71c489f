"""`pyheadkv serve`: one model behind OpenAI's HTTP API."""

from __future__ import annotations

import logging
import socket
import sys
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from pyheadkv.chat import demo
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.cli.fit import parse_size
from pyheadkv.cli.model import ModelChoice
from pyheadkv.cli.options import ServeOptions
from pyheadkv.cli.render import note
from pyheadkv.cli.welcome import welcome_lines
from pyheadkv.errors import UsageError
from pyheadkv.server.conversations import Conversations
from pyheadkv.server.folder import Folder

if TYPE_CHECKING:
    from pyheadkv.server.memory import MemoryLimit

GRACE_SECONDS = 30  # for answers that are being given when the server is stopped
MIN_BODY, MAX_BODY = 1 << 23, 1 << 26
BODY_PER_TOKEN = 64  # of the context; text has about 4 bytes, written in JSON 6 at most for one of them


def run(options: ServeOptions) -> None:
    """Serve until Ctrl-C or SIGTERM; answers that are being given then end first.

    Raises
    ------
    HeadKVError
        anything that the user can mend
    """
    try:
        import uvicorn

        from pyheadkv.server.app import make_app
        from pyheadkv.server.guard import Rules, read_keys
        from pyheadkv.server.model import Model
    except ImportError as error:
        raise UsageError(f"serve needs {error.name}: pip install 'pyheadkv[serve]'") from None

    limit = _limit(options)
    if limit:
        options = replace(options, fit=f"{limit.bytes_model >> 20}MiB")
    choice = ModelChoice.read(options)
    Sampling().having(options.sampling)  # refuses what is out of range
    folder = _folder(options)
    keys = read_keys(options.api_key_file) if options.api_key_file else ()
    # before a model is fetched and loaded
    with _bound(options.host, options.port) as listener, folder.used_alone() if folder else nullcontext():
        found = choice.find()
        llama = found.load()
        with found.compressing(llama) as headkv:
            sampling = demo.sampling_of(llama, note).having(options.sampling)
            model = Model(
                headkv,
                found.path.stem,
                sampling,
                stop_loops=not options.no_loop_stop,
                conversations=_conversations(folder, headkv) if folder else None,
                limit=limit,
            )
            max_bodies = limit.max_bodies if limit else None
            max_body = min(max(MIN_BODY, BODY_PER_TOKEN * found.n_ctx), MAX_BODY, max_bodies or MAX_BODY)
            rules = Rules(keys, options.allow_origin or (), max_body, max_bodies)
            app = make_app(model, rules, max_waiting=options.max_waiting, log_prompts=options.log_prompts)
            for line in welcome_lines(headkv):
                note(line)
            listener.listen()  # whoever reads the next line may connect
            host, port = listener.getsockname()[:2]
            note(f"{model.name} answers at http://{f'[{host}]' if ':' in host else host}:{port}/v1")
            _log_to_stderr()
            config = uvicorn.Config(
                app, log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS, lifespan="on"
            )
            uvicorn.Server(config).run(sockets=[listener])


def _limit(options: ServeOptions) -> MemoryLimit | None:
    """Of the process's memory."""
    from pyheadkv.server.memory import MemoryLimit

    if not options.limit_memory:
        return None
    if options.fit:
        raise UsageError(f"--limit-memory {options.limit_memory} chooses as --fit {options.fit} does: give one of both")
    return MemoryLimit(parse_size(options.limit_memory, "--limit-memory"), options.limit_memory)


def _folder(options: ServeOptions) -> Folder | None:
    """Where conversations are kept."""
    if not options.memory:
        return None
    if options.archive == "none" or options.no_sweep:
        which = "--no-sweep" if options.no_sweep else "--archive none"
        raise UsageError(f"{which} keeps no rows that could be saved: --memory needs an archive")
    return Folder(options.memory, parse_size(options.memory_size, "--memory-size"))


def _conversations(folder: Folder, headkv: HeadKV) -> Conversations:
    conversations = Conversations(headkv, folder, logging.getLogger("pyheadkv.server").warning)
    for line in folder.scan(headkv.check_capsule):
        note(line)
    note(f"{folder.n_kept} conversations in {folder.path}")
    return conversations


def _bound(host: str, port: int) -> socket.socket:
    """A socket at an address, to which nobody can connect yet; it is closed by its context manager."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except OSError:
            listener.close()
            raise
    except (OSError, UnicodeError) as error:
        words = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"port {port} of {host} cannot be had: {words} (--host, --port)") from None
    return listener


def _log_to_stderr() -> None:
    """One line for each request, and what goes wrong inside."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name, level in (("pyheadkv.server", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False
