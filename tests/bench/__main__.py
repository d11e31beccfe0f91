"""`make bench`: what a question costs beside the stock model, and what pruning itself costs, on this machine.

python -m tests.bench [SECTION...] measures all sections but gpu, or these. Needs torch and transformers; Redis where it
is installed; a decoder for video, and Ray too for service and soak. The overhead at real dimensions takes up to 16 GiB
and some minutes on a CPU. Ends with 1 where a section that judges (gpu, flips, soak) has a bar that was missed.
"""

import argparse
import sys
from pathlib import Path

import torch

from tests.bench import flips, gpu, overhead, quantized, questions, service, soak, speed, video, wire
from tests.bench.report import publish

SECTIONS = {
    "questions": questions,
    "overhead": overhead,
    "speed": speed,
    "flips": flips,
    "wire": wire,
    "quantized": quantized,
    "video": video,
    "service": service,
    "soak": soak,
}
"""Those that run together; `gpu` has defaults of its own, and runs alone."""
GPU = {"gpu": gpu}


def main() -> int:
    """Every section, one after the other; 1 if one of them missed a bar of its own."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"gpu, or {', '.join(SECTIONS)} (all)")
    parser.add_argument("--model", action="append", help="in place of the section's own; may be given several times")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--quantization", default="none", choices=("none", "int8"), help="of linear maps, both sides'")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (what it takes itself)")
    parser.add_argument("--layers", type=int, default=6, help="of a real decoder at most, which have 32 and 36 (6)")
    parser.add_argument("--size", type=int, nargs=2, default=(480, 640), help="rows and columns of a frame (480 640)")
    parser.add_argument("--frames", type=int, help="of the clip (what the model samples)")
    parser.add_argument("--chunk-frames", type=int, default=8, help="that the tower takes at once (8)")
    parser.add_argument("--json", type=Path, help="file for all tables but those of questions and overhead")
    parser.add_argument("--document", type=Path, help="Markdown file whose markers get the same tables")
    for section in (*SECTIONS.values(), gpu):
        section.add_options(parser)
    args = parser.parse_args()
    sections = SECTIONS
    if args.sections == list(GPU):
        parser.set_defaults(**gpu.DEFAULTS)
        args, sections = parser.parse_args(), GPU
    if unknown := set(args.sections) - set(sections):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}, or gpu alone")
    reports = []
    for name in args.sections or sections:
        for model in args.model or sections[name].MODELS:
            print(f"\n== {name}: {model}")
            if report := sections[name].measure(model, args):
                print(report.text())
                reports.append(report)
                publish(reports, args.json, args.document)
    failures = [f"{report.name}: {failure}" for report in reports for failure in report.failures]
    print("".join(f"FAIL {failure}\n" for failure in failures), end="")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
