"""The benchmarks that can be read, as their authors publish them, and how each one asks.

MVBench, Video-MME, MLVU, LongVideoBench and EgoSchema are multiple choice, asked with their own prompts (EgoSchema has
none: the usual one). The question-answering ones lie as Video-ChatGPT and Video-LLaVA distribute them, and are asked
for a short answer, since it is matched exactly. Subtitles are not used.
"""

from pipelines.evaluation.tasks.layout import Layout
from pipelines.evaluation.tasks.scoring import Prompt

_BEST_OPTION = Prompt(
    text="Carefully watch the video and pay attention to the cause and sequence of events, the detail and movement of "
    "objects, and the action and pose of persons. Based on your observations, select the best option that accurately "
    "addresses the question.\nQuestion: {question}\nOptions:\n{options}\nOnly give the best option.",
    option="({letter}) {choice}",
)
_EVERY_DETAIL = Prompt(
    text="Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
    "option that accurately addresses the question.\nQuestion: {question}\nOptions:\n{options}\n"
    "Only give the best option.",
    option="({letter}) {choice}",
)
_VIDEO_MME = Prompt(
    text="Select the best answer to the following multiple-choice question based on the video. Respond with only the "
    "letter (A, B, C, or D) of the correct option.\n{question}\n{options}\nThe best answer is:"
)
_LETTER = Prompt()
_SHORT = Prompt(bare="{question}\nAnswer the question using a single word or phrase.")

_MVBENCH_FOLDERS = {
    "action_sequence": "star/Charades_v1_480",
    "action_prediction": "star/Charades_v1_480",
    "action_antonym": "ssv2_video",
    "fine_grained_action": "Moments_in_Time_Raw/videos",
    "unexpected_action": "FunQA_test/test",
    "object_existence": "clevrer/video_validation",
    "object_interaction": "star/Charades_v1_480",
    "object_shuffle": "perception/videos",
    "moving_direction": "clevrer/video_validation",
    "action_localization": "sta/sta_video",
    "scene_transition": "scene_qa/video",
    "action_count": "perception/videos",
    "moving_count": "clevrer/video_validation",
    "moving_attribute": "clevrer/video_validation",
    "state_change": "perception/videos",
    "fine_grained_pose": "nturgbd",
    "character_order": "perception/videos",
    "egocentric_navigation": "vlnqa",
    "episodic_reasoning": "tvqa/frames_fps3_hq",
    "counterfactual_inference": "clevrer/video_validation",
}


def _question_answering(*videos: str, kind: str = "{first_word}") -> Layout:
    return Layout(
        questions="test_q.json",
        answers="test_a.json",
        videos=videos,
        id="{question_id}",
        kind=kind,
        answer="answer",
        prompt=_SHORT,
    )


BENCHMARKS = {
    "mvbench": Layout(
        questions="json/*.json",
        videos=("video/{folder}/{video}", "video/data0613/{folder}/{video}"),
        folders=_MVBENCH_FOLDERS,
        id="{file}-{row}",
        kind="{file}",
        choices="candidates",
        answer="answer",
        span=("start", "end"),
        fps=3.0,
        prompt=_BEST_OPTION,
    ),
    "video-mme": Layout(
        questions="videomme/*.parquet",
        videos=("data/{videoID}", "video/{videoID}", "videos/{videoID}"),
        id="{question_id}",
        kind="{duration}",
        choices="options",
        answer="answer",
        prompt=_VIDEO_MME,
    ),
    "mlvu": Layout(
        questions="json/[1-7]_*.json",
        videos=("video/{file}/{video}",),
        id="{file}-{row}",
        kind="{question_type}",
        choices="candidates",
        answer="answer",
        prompt=_EVERY_DETAIL,
    ),
    "longvideobench": Layout(
        questions="lvb_val.json",
        videos=("videos/{video_path}",),
        id="{id}",
        kind="{question_category}",
        choices="candidates",
        answer="correct_choice",
        prompt=_LETTER,
    ),
    "egoschema": Layout(
        questions="questions.json",
        answers="subset_answers.json",
        videos=("videos/{q_uid}",),
        id="{q_uid}",
        kind="subset",
        choices=tuple(f"option {number}" for number in range(5)),
        answer="answer",
        prompt=_LETTER,
    ),
    "msvd-qa": _question_answering("videos/{video_name}"),
    "msrvtt-qa": _question_answering("videos/all/{video_name}", "videos/{video_name}"),
    "tgif-qa": _question_answering("mp4/{video_name}", "videos/{video_name}"),
    "activitynet-qa": _question_answering("all_test/v_{video_name}", "all_test/{video_name}", kind="type {type}"),
}
"""Layouts by the name that `--task NAME:FOLDER` uses."""
