"""`pyheadkv ingest`: read texts once, and keep all their rows in a file."""

from __future__ import annotations

from pyheadkv.capsule.writer import check_place
from pyheadkv.chat import demo
from pyheadkv.chat.ingest import ingest
from pyheadkv.cli.first_message import shown_name
from pyheadkv.cli.model import ModelChoice
from pyheadkv.cli.options import IngestOptions, ModelOptions
from pyheadkv.cli.render import ReadingBar, note
from pyheadkv.errors import UsageError
from pyheadkv.files.plain_text import Limit, open_text, size_text, typed_text


def run(options: IngestOptions) -> None:
    """Read, write the file and print its path.

    Raises
    ------
    HeadKVError
        anything that the user can mend
    KeyboardInterrupt
        Ctrl-C; nothing was written
    """
    if not options.files or options.output is None:
        raise UsageError("expected texts and a file to write: -f TEXT -o FILE.hkv")
    check_place(options.output, overwrite=options.force)
    name = typed_text(options.name, "--name")
    system = None if options.system is None else typed_text(options.system, "-sys")
    sources = [(file, open_text(file)) for file in map(demo.named_file, options.files)]
    found = ModelChoice.read(_model_options(options)).find()
    limit = Limit.of_context(found.n_ctx)
    texts = [(shown_name(file), source.read(limit)) for file, source in sources]
    llama = found.load()
    bar = ReadingBar()
    try:
        contents = ingest(
            llama,
            texts,
            options.output,
            name=name,
            system=demo.system_of(llama, system),
            archive=options.archive,
            overwrite=options.force,
            on_notice=note,
            on_progress=bar.update,
        )
    finally:
        bar.stop()
    note(f"{len(contents.tokens)} tokens, {size_text(contents.end)}")
    print(options.output)


def _model_options(options: IngestOptions) -> ModelOptions:
    return ModelOptions(
        model=options.model,
        budget="full",
        policy="snapkv",
        n_ctx=options.n_ctx,
        n_threads=options.n_threads,
        n_gpu_layers=options.n_gpu_layers,
        type_k=options.type_k,
        type_v=options.type_v,
        template=options.template,
        archive=options.archive,
        verbose=options.verbose,
    )
