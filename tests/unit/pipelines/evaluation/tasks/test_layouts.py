"""Every benchmark's layout, read from a miniature of it; a user's JSONL; what is wrong with files, said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from occam.errors import InvalidInput
from pipelines.evaluation.codec import write_mp4
from pipelines.evaluation.tasks import BENCHMARKS, open_task
from pipelines.evaluation.tasks.benchmarks import _MVBENCH_FOLDERS
from pipelines.evaluation.tasks.entries import Choice
from pipelines.evaluation.tasks.task import Item, Task
from pipelines.ingest.limits import Limits
from tests.evaluated import INFO

ALL = Choice(limit=None, tuning=1, seed=0)


def dump(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"a video")


def opened(spec: str, choice: Choice = ALL) -> Task:
    return open_task(spec, choice, Limits())(INFO)


def items(task: Task) -> dict[str, tuple[str, Item]]:
    """Of both splits, by id, with the clip's."""
    return {item.id: (clip.id, item) for clip in (*task.clips, *task.tuning) for item in clip.items}


def mvbench(root: Path) -> None:
    row = {"question": "What next?", "candidates": ["sits", "stands"], "answer": "stands"}
    dump(root / "json/action_sequence.json", [{**row, "video": "a.mp4", "start": 1.5, "end": 4.0, "fps": 3.0}])
    dump(root / "json/moving_count.json", [{**row, "video": "b.mp4"}, {**row, "video": "gone.mp4"}])
    dump(root / "json/episodic_reasoning.json", [{**row, "video": "c", "start": 0, "end": 1}])
    touch(root, "video/star/Charades_v1_480/a.mp4", "video/data0613/clevrer/video_validation/b.mp4")
    touch(root, "video/tvqa/frames_fps3_hq/c/00001.jpg")


def video_mme(root: Path) -> None:
    import pyarrow
    from pyarrow.parquet import write_table

    (root / "videomme").mkdir(parents=True)
    row = {"video_id": "001", "videoID": "fFjv", "duration": "short", "task_type": "Counting", "answer": "B"}
    row |= {"question": "How many?", "options": ["A. One.", "B. Two."], "question_id": "001-1"}
    write_table(pyarrow.Table.from_pylist([row]), root / "videomme/test-00000-of-00001.parquet")
    touch(root, "data/fFjv.mp4")


def mlvu(root: Path) -> None:
    row = {"video": "m.mp4", "duration": 5, "question": "Which?", "candidates": ["x", "y"], "answer": "x"}
    dump(root / "json/1_plotQA.json", [{**row, "question_type": "plotQA"}])
    dump(root / "json/9_summary.json", [{"video": "m.mp4", "question": "Sum up.", "question_type": "summary"}])
    touch(root, "video/1_plotQA/m.mp4")


def longvideobench(root: Path) -> None:
    row = {"id": "l_0", "video_id": "l", "video_path": "l.mp4", "question": "Who?", "candidates": ["he", "she", "it"]}
    dump(root / "lvb_val.json", [{**row, "correct_choice": 2, "question_category": "S2E"}])
    touch(root, "videos/l.mp4")


def egoschema(root: Path) -> None:
    options = {f"option {number}": f"text {number}" for number in range(5)}
    dump(root / "questions.json", [{"q_uid": uid, "question": "Why?", **options} for uid in ("u1", "u2")])
    dump(root / "subset_answers.json", {"u2": 3})
    touch(root, "videos/u2.mp4")


def answered(*videos: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        dump(root / "test_q.json", [{"video_name": "v1", "question": "Who runs?", "question_id": "q1"}])
        dump(root / "test_a.json", [{"answer": "dog", "type": 3, "question_id": "q1"}])
        touch(root, *videos)

    return write


@pytest.mark.parametrize(
    ("name", "write", "id_", "video", "kind", "answer", "asked"),
    [
        (
            "video-mme",
            video_mme,
            "001-1",
            "data/fFjv.mp4",
            "short",
            "B",
            "How many?\nA. One.\nB. Two.\nThe best answer",
        ),
        (
            "mlvu",
            mlvu,
            "1_plotQA-0",
            "video/1_plotQA/m.mp4",
            "plotQA",
            "A",
            "Question: Which?\nOptions:\n(A) x\n(B) y\n",
        ),
        (
            "longvideobench",
            longvideobench,
            "l_0",
            "videos/l.mp4",
            "S2E",
            "C",
            "Who?\nA. he\nB. she\nC. it\nAnswer with",
        ),
        ("egoschema", egoschema, "u2", "videos/u2.mp4", "subset", "D", "Why?\nA. text 0\nB. text 1\n"),
        ("msvd-qa", answered("videos/v1.avi"), "q1", "videos/v1.avi", "who", "dog", "Who runs?\nAnswer the question"),
        ("msrvtt-qa", answered("videos/all/v1.mp4"), "q1", "videos/all/v1.mp4", "who", "dog", "Who runs?\n"),
        ("tgif-qa", answered("mp4/v1.mp4"), "q1", "mp4/v1.mp4", "who", "dog", "Who runs?\n"),
        ("activitynet-qa", answered("all_test/v_v1.mkv"), "q1", "all_test/v_v1.mkv", "type 3", "dog", "Who runs?\n"),
    ],
    ids=lambda value: value if isinstance(value, str) and value in BENCHMARKS else "",
)
def test_a_benchmark_as_it_lies_on_disk(
    tmp_path: Path, name: str, write: Callable[[Path], None], id_: str, video: str, kind: str, answer: str, asked: str
) -> None:
    write(tmp_path)
    task = opened(f"{name}:{tmp_path}")
    found = items(task)
    assert list(found) == [id_]
    clip, item = found[id_]
    assert (clip, item.kind, item.answer) == (video, kind, answer)
    assert asked in item.question
    assert task.max_new_tokens == (32 if item.choices is None else 16)


def test_mvbench_has_stretches_folders_of_pictures_and_questions_whose_clip_is_missing(tmp_path: Path) -> None:
    mvbench(tmp_path)
    task = opened(f"mvbench:{tmp_path}")
    found = items(task)
    assert {id_: (clip, item.kind) for id_, (clip, item) in found.items()} == {
        "action_sequence-0": ("video/star/Charades_v1_480/a.mp4 1.5..4 s", "action_sequence"),
        "moving_count-0": ("video/data0613/clevrer/video_validation/b.mp4", "moving_count"),
        "episodic_reasoning-0": ("video/tvqa/frames_fps3_hq/c 0..1 s", "episodic_reasoning"),
    }
    assert all(item.answer == "B" and "(A) sits\n(B) stands\nOnly give" in item.question for _, item in found.values())
    assert task.missing == 1


def test_mvbench_knows_the_folder_of_all_its_tasks() -> None:
    assert len(_MVBENCH_FOLDERS) == 20


def test_frames_come_from_the_stretch_and_from_pictures(tmp_path: Path) -> None:
    shades = np.repeat(np.arange(12, dtype=np.uint8) * 20, 64 * 64 * 3).reshape(12, 64, 64, 3)
    write_mp4(tmp_path / "a.mp4", shades)
    (tmp_path / "pictures").mkdir()
    for index, shade in enumerate(shades):
        Image.fromarray(shade).save(tmp_path / f"pictures/{index:03}.png")
    row = {"question": "Q", "answer": "x", "start_s": 4, "end_s": 8}
    lines = [
        {**row, "video": "a.mp4"},
        {**row, "video": "pictures"},
        {"question": "R", "answer": "y", "video": "a.mp4"},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
    task = opened(str(tmp_path / "t.jsonl"))
    frames = {clip.id: clip.sample(INFO).frames() for clip in (*task.clips, *task.tuning)}
    assert {name: batch.indices.tolist() for name, batch in frames.items()} == {
        "a.mp4 4..8 s": [4, 5, 6, 7],
        "pictures 4..8 s": [4, 5, 6, 7],
        "a.mp4": [0, 3, 6, 9],
    }
    assert frames["pictures 4..8 s"].frames[:, 0, 0, 0].tolist() == [80, 100, 120, 140]
    assert frames["pictures 4..8 s"].pts_seconds.tolist() == [4, 5, 6, 7]


def test_questions_about_the_same_clip_share_it(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    row = {"question": "Q\u2028in\x85lines", "answer": "B", "choices": ["x", "y"], "kind": "where"}
    lines = [{"video": "a.mp4", **row}, {"video": "b.mp4", **row}, {"video": "a.mp4", **row, "id": "third"}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n"
    (tmp_path / "t.jsonl").write_text(text, "utf-8")
    task = opened(str(tmp_path / "t.jsonl"), Choice(limit=None, tuning=1, seed=0))
    assert (len(task.clips), len(task.tuning)) == (1, 1)
    by_clip = {clip.id: [item.id for item in clip.items] for clip in (*task.clips, *task.tuning)}
    assert by_clip == {"a.mp4": ["line 1", "third"], "b.mp4": ["line 2"]}
    assert items(task)["third"][1].answer == "B"
    assert items(task)["third"][1].question.startswith(row["question"])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "t.jsonl, line 2: it is no JSON"),
        ('["video"]', "line 2: a line is an object"),
        ('{"video": "a.mp4", "question": 3, "answer": "x"}', "line 2: a line is an object"),
        ('{"video": "a.mp4", "question": "Q"}', "`answer` must be"),
        ('{"video": "a.mp4", "question": "Q", "answer": "x", "option": 1}', "option is none of video, question"),
        (
            '{"video": "a.mp4", "question": "Q", "answer": "z", "choices": ["x", "y"]}',
            "line 2: The answer 'z' is neither",
        ),
        ('{"video": "a.mp4", "question": "Q", "answer": "x", "choices": "xy"}', "`choices` must be a list"),
        ('{"video": "a.mp4", "question": "Q", "answer": "x", "id": "line 1"}', "two questions of one id"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path: Path, line: str, says: str) -> None:
    touch(tmp_path, "a.mp4")
    (tmp_path / "t.jsonl").write_text('{"video": "a.mp4", "question": "Q", "answer": "x"}\n' + line)
    with pytest.raises(InvalidInput, match=says):
        opened(str(tmp_path / "t.jsonl"))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    for spec, says in {
        "sorcery": "There is no task 'sorcery'; there are embedded, FILE.jsonl, mvbench:FOLDER",
        f"mlvu:{tmp_path}": r"holds no json/\[1-7\]_\*.json",
        str(tmp_path / "absent.jsonl"): "cannot be read",
    }.items():
        with pytest.raises(InvalidInput, match=says):
            opened(spec)
    longvideobench(tmp_path)
    (tmp_path / "videos/l.mp4").unlink()
    with pytest.raises(InvalidInput, match=r"holds 1 questions, and the clip of none: .*l.mp4 is not there"):
        opened(f"longvideobench:{tmp_path}")
    dump(tmp_path / "lvb_val.json", [{"question": "Who?"}])
    with pytest.raises(InvalidInput, match=r"lvb_val\.json, row 0: there is no 'candidates'"):
        opened(f"longvideobench:{tmp_path}")
