"""A Dockerfile as data: stages and their instructions, and which files of a context it may see."""

import fnmatch
import json
import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Instruction:
    """One instruction: `rest` is what follows the name, with continued lines joined."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        """The words that are no flags."""
        return [word for word in self.rest.split() if not word.startswith("--")]

    def flag(self, name: str) -> str | None:
        """The value of `--name=value`."""
        found = re.search(rf"--{name}=(\S+)", self.rest)
        return found and found.group(1)

    @property
    def listed(self) -> list[str]:
        """The JSON form of a command."""
        words: list[str] = json.loads(self.rest[self.rest.index("[") :])
        return words


@dataclass
class Stage:
    """What stands between one FROM and the next."""

    base: str
    name: str
    instructions: list[Instruction] = field(default_factory=list)


def stages(path: Path) -> list[Stage]:
    """The stages of a Dockerfile in order."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    found: list[Stage] = []
    for line in filter(str.strip, joined.splitlines()):
        name, rest = line.split(maxsplit=1)
        if name == "FROM":
            base, _, stage = rest.split()
            found.append(Stage(base, stage))
        else:
            found[-1].instructions.append(Instruction(name, rest))
    return found


def line_of(found: list[Stage], target: str) -> list[Stage]:
    """`target` and the stages that it stands on, the lowest first."""
    named = {stage.name: stage for stage in found}
    line = [named[target]]
    while line[0].base in named:
        line.insert(0, named[line[0].base])
    return line


def pairs(rest: str) -> dict[str, str]:
    """`NAME=value` of ENV and ARG, values quoted or not."""
    return {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\S+)', rest)}


def is_ignored(ignore: Path, path: str) -> bool:
    """Whether the last pattern of a .dockerignore that speaks of the path, or of a folder above it, leaves it out."""
    parts = path.split("/")
    above = ["/".join(parts[: end + 1]) for end in range(len(parts))]
    ignored = False
    for line in ignore.read_text().splitlines():
        pattern = line.strip().lstrip("!")
        if pattern and not pattern.startswith("#") and any(_speaks_of(pattern, name) for name in above):
            ignored = not line.strip().startswith("!")
    return ignored


def _speaks_of(pattern: str, name: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(name.rsplit("/", 1)[-1], pattern[3:])
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)
