"""The `occam` command. Exit codes: 0 done, 1 failed, 2 used wrongly."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from occam.config import STRATEGIES, SamplingParams
from occam.errors import InvalidInput, OccamError
from services import eval_command, exporter_command, plan_command, serve_command
from services.keys import entry_of, fresh_key
from services.settings import KEY_VARIABLE, Settings

if TYPE_CHECKING:
    from pipelines.evaluation.calibrate import Footage
    from services.answer_schemas import AnswerBody


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.run
    try:
        command(options)
    except OccamError as error:
        _report(error, as_json=getattr(options, "json", False))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="occam", description="Questions about videos and images, answered from pruned tokens."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve_command.add_arguments(commands.add_parser("serve", help="run the service until SIGTERM"))
    exporter_command.add_arguments(commands.add_parser("exporter", help="a node's metrics over HTTP, beside its Ray"))
    _add_ask(commands.add_parser("ask", help="ask about one video or image, in this process or a service"))
    _add_calibrate(commands.add_parser("calibrate", help="measure what a checkpoint needs for pruning, and keep it"))
    _add_registers(commands.add_parser("registers", help="find the neurons behind a checkpoint's attention sinks"))
    eval_command.add_arguments(
        commands.add_parser("eval", help="compare strategies at equal budgets over a task"), _progress
    )
    plan_command.add_arguments(commands.add_parser("plan", help="what a load takes: tokens, Redis memory, workers"))
    key = commands.add_parser("key", help="make an API key for a tenant of the service")
    key.add_argument("tenant", metavar="TENANT", help="letters, digits, dots, dashes, underscores")
    key.set_defaults(run=_key)
    models = commands.add_parser("models", help="list models, families and calibrations")
    models.add_argument("name", nargs="*", metavar="MODEL", help="checkpoints to look at (those in the package)")
    models.add_argument("--json", action="store_true", help="one JSON object")
    models.set_defaults(run=_models)
    return parser


def _add_ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="path or http(s) URL of a video or image")
    parser.add_argument("question", metavar="QUESTION")
    parser.add_argument("--follow-up", action="append", default=[], metavar="Q", help="ask on, may be repeated")
    parser.add_argument("--model", help="embedded model, checkpoint directory or hub name (OCCAM_MODELS)")
    parser.add_argument("--strategy", choices=tuple(STRATEGIES), help="how visual tokens are pruned")
    parser.add_argument("--budget", type=float, metavar="N", help="share or number of patches kept, by fixed count")
    parser.add_argument("--lambda1", type=float, help="stage I threshold factor; 0 keeps every token")
    parser.add_argument("--lambda2", type=float, help="stage II threshold factor; 0 keeps every token")
    parser.add_argument("--start", type=float, metavar="S", help="look from this second on")
    parser.add_argument("--end", type=float, metavar="S", help="look up to this second")
    parser.add_argument("--fps", type=float, help="frames a second, instead of the model's fixed number")
    parser.add_argument("--max-frames", type=int, metavar="N", help="at most so many frames")
    parser.add_argument("--max-tokens", type=int, default=64, metavar="N", help="longest answer (64)")
    parser.add_argument("--evidence", action="store_true", help="with --json: which patches the answer rests on")
    parser.add_argument("--json", action="store_true", help="one JSON object a question, as the HTTP API answers")
    parser.add_argument("--server", metavar="URL", type=_service, help="ask this service; it takes videos only")
    parser.add_argument(
        "--key", help="API key of the service; rather set OCCAM_API_KEY, which no list of processes shows"
    )
    parser.set_defaults(run=_ask)


def _add_calibrate(parser: argparse.ArgumentParser) -> None:
    _add_material(parser)
    parser.add_argument("--cut", type=int, metavar="L", help="decoder layers before stage II (the family's)")
    parser.add_argument("--stage1", type=float, default=0.85, metavar="SHARE", help="kept by stage I, on average")
    parser.add_argument(
        "--budget", type=float, default=0.25, metavar="N", help="kept by stage II, on average: a share, or tokens"
    )
    parser.add_argument("--trials", type=int, default=200, metavar="N", help="rendered clips to compare on (200)")
    parser.set_defaults(run=_calibrate)


def _add_registers(parser: argparse.ArgumentParser) -> None:
    _add_material(parser)
    parser.set_defaults(run=_registers)


def _add_material(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="embedded model, checkpoint directory or hub name")
    parser.add_argument(
        "--videos", metavar="FOLDER", help="your clips, each with its questions in NAME.txt (rendered clips)"
    )
    parser.add_argument("--samples", type=int, default=50, metavar="N", help="rendered clips to measure on (50)")


def _service(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError("a service's address begins with http:// or https://")
    return url


def _ask(options: argparse.Namespace) -> None:
    piece = _drop if options.json else _write
    for answer in (_answers_here if options.server is None else _answers_of_server)(options, piece):
        _note("")
        print(answer.model_dump_json() if options.json else _summary(answer), flush=True)


def _answers_of_server(options: argparse.Namespace, piece: Callable[[str], None]) -> "Iterator[AnswerBody]":
    from services.ask_server import Server, ask, query_of

    key = options.key or os.environ.get(KEY_VARIABLE, "")
    questions = (options.question, *options.follow_up)
    return ask(Server(url=options.server, key=key), options.source, questions, query_of(options), _note, piece)


def _answers_here(options: argparse.Namespace, piece: Callable[[str], None]) -> "Iterator[AnswerBody]":
    from transformers.utils import logging

    from services.answer_schemas import AnswerBody
    from services.ask import Errand, ask
    from services.messages import FrameChoice, PruningChoice

    # Its bar for the weights appears on no terminal too.
    logging.disable_progress_bar()
    settings = Settings.load()
    if options.model:
        settings = replace(settings, models=(options.model,))
    errand = Errand(
        source=options.source,
        questions=(options.question, *options.follow_up),
        frames=FrameChoice(fps=options.fps, max_frames=options.max_frames, start_s=options.start, end_s=options.end),
        pruning=PruningChoice(
            strategy=options.strategy,
            options={
                name: value
                for name in ("lambda1", "lambda2", "budget")
                if (value := getattr(options, name)) is not None
            },
        ),
        sampling=SamplingParams(max_new_tokens=options.max_tokens),
        evidence=options.evidence,
    )
    for reply in ask(settings, errand, _note, piece):
        yield AnswerBody.of(reply, options.evidence)


def _calibrate(options: argparse.Namespace) -> None:
    from pipelines.evaluation.calibrate import Plan, calibrate

    plan = Plan(
        stage1=options.stage1, stage2=options.budget, cut=options.cut, samples=options.samples, trials=options.trials
    )
    settings, artefact = Settings.load(), _artefact(options.model)
    report = calibrate(settings.engine(options.model), plan, _footage(settings, options), _progress)
    print(report)
    report.calibration.save(artefact)


def _registers(options: argparse.Namespace) -> None:
    from pipelines.evaluation.calibrate import Plan, find_registers
    from pipelines.evaluation.premise import described

    plan = Plan(samples=options.samples)
    settings, artefact = Settings.load(), _artefact(options.model)
    calibration, found = find_registers(settings.engine(options.model), plan, _footage(settings, options), _progress)
    print(described(found))
    calibration.save(artefact)
    print("kept" if calibration.complete else f"kept; `occam calibrate {options.model}` sets the lambdas")


def _artefact(model: str) -> Path:
    """Where the model's calibration is kept; InvalidInput where that is not for us to write, before minutes of work."""
    from occam.calibration import ARTEFACT_NAME
    from occam.models.checkpoint import locate

    directory = locate(model)
    if not os.access(directory, os.W_OK):
        raise InvalidInput(f"{directory} cannot be written to, and the calibration lies beside the weights.", "model")
    return directory / ARTEFACT_NAME


def _footage(settings: Settings, options: argparse.Namespace) -> "Footage | None":
    """The user's folder; None without one."""
    from pipelines.evaluation.footage import open_footage
    from services.media import limits_of

    return None if options.videos is None else open_footage(Path(options.videos), limits_of(settings))


def _models(options: argparse.Namespace) -> None:
    from services.catalogue import as_json, families, models

    listed, known = models(options.name), families()
    if options.json:
        print(as_json(listed, known))
    else:
        print("\n".join([*map(str, listed), "", "families of checkpoints, by name or path:", *map(str, known)]))


def _key(options: argparse.Namespace) -> None:
    key = fresh_key()
    entry = entry_of(options.tenant, key)
    print(f"key, shown this once:       {key}\nentry of OCCAM_API_KEYS:    {entry}")


def _note(text: str) -> None:
    """What is going on, on a terminal only: one line that the next one overwrites."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _progress(phase: str, done: int, total: int) -> None:
    """How far a phase is: a line that grows on a terminal, elsewhere one line at its end."""
    line = f"{phase}: {done} of {total} clips"
    _note(line)
    if done == total:
        print("" if sys.stderr.isatty() else line, file=sys.stderr, flush=True)


def _write(text: str) -> None:
    _note("")
    print(text, end="", flush=True)


def _drop(_: str) -> None:
    pass


def _summary(answer: "AnswerBody") -> str:
    """What stands behind an answer's text: tokens and seconds."""
    usage = answer.usage
    tokens = usage.visual_tokens
    return (
        f"\n  visual tokens: {tokens.encoded} encoded, {tokens.stage1} after stage I, {tokens.stage2} after stage II; "
        f"{answer.timings.total_s:.2f} s, {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens cached"
    )


def _report(error: OccamError, as_json: bool) -> None:
    _note("")
    if as_json:
        from services.statuses import body_of

        body = body_of(error, request_id=None).model_dump()
        print(json.dumps(getattr(error, "body", body)))
    else:
        print(f"occam: {error.message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
