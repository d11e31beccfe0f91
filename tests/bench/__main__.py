"""`make bench`: what a question costs beside the stock model, and what pruning itself costs, on this machine.

python -m tests.bench [SECTION...] measures all sections, or these. Needs torch and transformers, no Ray, decoder or
Redis. The overhead at real dimensions takes up to 16 GiB and some minutes on a CPU.
"""

import argparse

from tests.bench import overhead, questions

SECTIONS = {"questions": questions, "overhead": overhead}


def main() -> None:
    """Every section, one after the other."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)} (all)")
    parser.add_argument("--model", action="append", help="in place of the section's own; may be given several times")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--repeats", type=int, default=9)
    for section in SECTIONS.values():
        section.add_options(parser)
    args = parser.parse_args()
    if unknown := set(args.sections) - set(SECTIONS):
        parser.error(f"no section {', '.join(sorted(unknown))}; there are {', '.join(SECTIONS)}")
    for name in args.sections or SECTIONS:
        for model in args.model or SECTIONS[name].MODELS:
            print(f"\n== {name}: {model}")
            SECTIONS[name].measure(model, args)


if __name__ == "__main__":
    main()
