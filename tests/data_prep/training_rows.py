"""One record of every training layout, written by hand, beside the row that it must become."""

import json

from data_prep import Turn

IMAGE_PART, TEXT_PART = {"type": "image"}, {"type": "text", "text": "Find x."}
INSTRUCTED = "<image>Find x. You FIRST think about the reasoning process. The answer MUST BE put in \\boxed{}."
WORKED = "<think>3 by 4 gives 5.</think>\n<answer> 5 </answer>"

# name: (record, the row; what is not named is the default of Row, images are named by their files)
LAYOUTS = {
    "TRL, text prompt": (
        {"prompt": "Find x.", "image": "a.png", "solution": "$\\frac{1}{2}$"},
        {"problem": "<image>Find x.", "answer": "$\\frac{1}{2}$", "images": ("a.png",)},
    ),
    "TRL, messages with parts": (
        {
            "prompt": [
                {"role": "system", "content": [{"type": "text", "text": "Think first."}]},
                {"role": "user", "content": [IMAGE_PART, IMAGE_PART, TEXT_PART]},
            ],
            "images": ["a.png", "b.png"],
            "solution": WORKED,
            "difficulty": 3,
        },
        {
            "earlier_turns": (Turn("system", "Think first."),),
            "problem": "<image><image>Find x.",
            "answer": "5",
            "images": ("a.png", "b.png"),
            "solution": WORKED,
            "metadata": {"difficulty": 3},
        },
    ),
    "TRL, messages of text only": (
        {"prompt": [{"role": "user", "content": "What is 1 + 1?"}], "solution": "2"},
        {"problem": "What is 1 + 1?", "answer": "2"},
    ),
    "multimodal-open-r1-8k-verified": (
        {"image": "a.png", "problem": "Find x.", "solution": WORKED, "original_question": "Q", "original_answer": "A"},
        {
            "problem": "<image>Find x.",
            "answer": "5",
            "images": ("a.png",),
            "solution": WORKED,
            "metadata": {"original_question": "Q", "original_answer": "A"},
        },
    ),
    "verl": (
        {
            "data_source": "hiyouga/geometry3k",
            "prompt": [{"role": "user", "content": INSTRUCTED}],
            "images": ["a.png"],
            "ability": "math",
            "reward_model": {"style": "rule", "ground_truth": "5"},
            "extra_info": {"split": "train", "index": 7, "answer": "5", "question": "<image>Find x.", "rate": 0.5},
        },
        {
            "id": "hiyouga/geometry3k/train/7",
            "problem": "<image>Find x.",
            "answer": "5",
            "images": ("a.png",),
            "source": "hiyouga/geometry3k",
            "split": "train",
            "metadata": {"ability": "math", "rate": 0.5},
        },
    ),
    "verl, images by name": (
        {
            "data_source": "geo",
            "prompt": [{"role": "user", "content": "<image>Find x."}],
            "images": [{"image": "file://ROOT/b.png"}],
            "reward_model": {"style": "rule", "ground_truth": 5},
        },
        {"problem": "<image>Find x.", "answer": "5", "images": ("b.png",), "source": "geo"},
    ),
    "verl, no question beside the prompt": (
        {
            "data_source": "math",
            "prompt": [{"role": "user", "content": "What is 1 + 1? Think."}],
            "reward_model": {"style": "rule", "ground_truth": "2"},
        },
        {"problem": "What is 1 + 1? Think.", "answer": "2", "source": "math"},
    ),
    "VLM-R1": (
        {
            "id": 1,
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>How many?"}, {"from": "gpt", "value": "0"}],
        },
        {"id": "1", "problem": "<image>How many?", "answer": "0", "images": ("a.png",)},
    ),
    "VLM-R1, several images and a tagged answer": (
        {
            "id": "m",
            "image": ["b.png", "a.png"],
            "conversations": [
                {"from": "human", "value": "<image> or <image>?"},
                {"from": "gpt", "value": "<answer> 0 </answer>"},
            ],
        },
        {"id": "m", "problem": "<image> or <image>?", "answer": "0", "images": ("b.png", "a.png")},
    ),
    "ms-swift": (
        {
            "images": ["a.png"],
            "messages": [{"role": "system", "content": "Think."}, {"role": "user", "content": "<image>How many?"}],
            "solution": "<answer> 3 </answer>",
        },
        {
            "earlier_turns": (Turn("system", "Think."),),
            "problem": "<image>How many?",
            "answer": "3",
            "images": ("a.png",),
        },
    ),
    "ms-swift, several turns and a system column": (
        {
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": "<image>What is it?"},
                {"role": "assistant", "content": "A <image> of a bar."},
                {"role": "user", "content": "And <image>?"},
                {"role": "assistant", "content": "It is <answer>4</answer>"},
            ],
            "images": ["a.png", "b.png"],
        },
        {
            "earlier_turns": (
                Turn("system", "Be brief."),
                Turn("user", "<image>What is it?"),
                Turn("assistant", "A <image> of a bar."),
            ),
            "problem": "And <image>?",
            "answer": "4",
            "solution": "It is <answer>4</answer>",
            "images": ("a.png", "b.png"),
        },
    ),
    "TRL, few-shot, the images without marks": (
        {
            "prompt": [
                {"role": "user", "content": "1 + 1?"},
                {"role": "assistant", "content": "2"},
                {"role": "user", "content": "2 + 2?"},
            ],
            "images": ["a.png"],
            "solution": "4",
        },
        {
            "earlier_turns": (Turn("user", "<image>1 + 1?"), Turn("assistant", "2")),
            "problem": "2 + 2?",
            "answer": "4",
            "images": ("a.png",),
        },
    ),
    "LLaVA conversations of several turns": (
        {
            "conversations": [
                {"from": "human", "value": "<image>\nHow many?"},
                {"from": "gpt", "value": "3"},
                {"from": "human", "value": "And of blue ones?"},
                {"from": "gpt", "value": "1"},
            ],
            "image": "a.png",
        },
        {
            "earlier_turns": (Turn("user", "<image>\nHow many?"), Turn("assistant", "3")),
            "problem": "And of blue ones?",
            "answer": "1",
            "images": ("a.png",),
        },
    ),
    "query and history": (
        {"query": "2 + 2?", "history": [["1 + 1?", "2"]], "response": "\\boxed{4}", "system": "Count.", "level": 1},
        {
            "earlier_turns": (Turn("system", "Count."), Turn("user", "1 + 1?"), Turn("assistant", "2")),
            "problem": "2 + 2?",
            "answer": "4",
            "metadata": {"level": 1},
        },
    ),
    "numbered marks, one of them twice": (
        {"problem": "Is <image_2> in <image_1>? Look at <image_2>.", "answer": "no", "images": ["a.png", "b.png"]},
        {
            "problem": "Is <image> in <image>? Look at image 1.",
            "answer": "no",
            "images": ("b.png", "a.png"),
        },
    ),
    "Qwen's own tokens": (
        {"problem": "See <|vision_start|><|image_pad|><|vision_end|>.", "answer": "1", "images": ["a.png"]},
        {"problem": "See <image>.", "answer": "1", "images": ("a.png",)},
    ),
    "ms-swift, with the assistant's turn as the worked answer": (
        {
            "messages": [{"role": "user", "content": "3, 4, ?"}, {"role": "assistant", "content": "So \\boxed{5}."}],
            "images": [],
        },
        {"problem": "3, 4, ?", "answer": "5", "solution": "So \\boxed{5}."},
    ),
    "MM-Eureka": (
        {
            "id": "0",
            "message": json.dumps(
                [{"role": "user", "content": [{"type": "image", "image": "file://ROOT/a.png"}, TEXT_PART]}]
            ),
            "answer": "$3$",
        },
        {"id": "0", "problem": "<image>Find x.", "answer": "$3$", "images": ("a.png",)},
    ),
    "LMM-R1, with the placeholder in the text too": (
        {
            "message": json.dumps(
                [
                    {
                        "role": "user",
                        "content": [
                            {"type": "image_url", "image_url": {"url": "b.png"}},
                            {"type": "text", "text": "In <image>\nfind x."},
                        ],
                    }
                ]
            ),
            "answer": 5,
        },
        {"problem": "In <image>\nfind x.", "answer": "5", "images": ("b.png",)},
    ),
    "GEOQA R1-V": (
        {"image": "a.png", "problem": "Find ∠A.", "solution": "<answer> 145° </answer>"},
        {"problem": "<image>Find ∠A.", "answer": "145°", "images": ("a.png",)},
    ),
    "GEOQA R1-V, its test file": (
        {"image_path": "a.png", "question": "Find ∠A.", "ground_truth": "140°"},
        {"problem": "<image>Find ∠A.", "answer": "140°", "images": ("a.png",)},
    ),
    "clevr_cogen": (
        {"image": "a.png", "problem": "How many items?", "solution": "<answer> 3 </answer>"},
        {"problem": "<image>How many items?", "answer": "3", "images": ("a.png",)},
    ),
    "ViRL39K": (
        {
            "question": "Which is larger?",
            "answer": "\\boxed{\\frac{1}{2}}",
            "image": ["a.png", "c.png"],
            "PassRate_32BTrained": 0.25,
            "PassRate_7BBase": 0.0,
            "category": "Geometry",
            "source": "Processed",
            "qid": "Processed-0",
        },
        {
            "id": "Processed-0",
            "problem": "<image><image>Which is larger?",
            "answer": "\\frac{1}{2}",
            "images": ("a.png", "c.png"),
            "source": "Processed",
            "metadata": {"PassRate_32BTrained": 0.25, "PassRate_7BBase": 0.0, "category": "Geometry"},
        },
    ),
    "two boxes as one answer": (
        {"question": "Solve.", "answer": "$\\boxed{1}$ and $\\boxed{-1}$"},
        {"problem": "Solve.", "answer": "1, -1"},
    ),
    "an answer that is worked": (
        {"question": "Solve.", "answer": "So x = 2 and \\boxed{4}."},
        {"problem": "Solve.", "answer": "4", "solution": "So x = 2 and \\boxed{4}."},
    ),
    "MAYE": (
        {"id": 3, "question": "<image>\nFind x.", "answer": "20", "solution": "\\boxed{20}", "image": "a.png"},
        {"id": "3", "problem": "<image>\nFind x.", "answer": "20", "images": ("a.png",)},
    ),
    "EasyR1": (
        {"images": ["a.png"], "problem": "<image>Find x.", "answer": "5 \\sqrt { 3 }"},
        {"problem": "<image>Find x.", "answer": "5 \\sqrt { 3 }", "images": ("a.png",)},
    ),
    "CLEVR-Math": (
        {"template": "add", "id": "v_1", "question": "Add 2. How many?", "image": "a.png", "label": 0},
        {"id": "v_1", "problem": "<image>Add 2. How many?", "answer": "0", "images": ("a.png",)},
    ),
    "MMMU": (
        {
            "id": "validation_Math_1",
            "question": "In <image 2>, see <image 2> and <image 1>.",
            "options": "['$\\\\frac{1}{2}$', \"it's\", 'a, b']",
            "image_1": "a.png",
            "image_2": "b.png",
            "image_3": None,
            "question_type": "multiple-choice",
            "answer": "B",
        },
        {
            "id": "validation_Math_1",
            "problem": "In <image>, see image 1 and <image>.",
            "answer": "B",
            "images": ("b.png", "a.png"),
            "kind": "choice",
            "choices": ("$\\frac{1}{2}$", "it's", "a, b"),
            "metadata": {"question_type": "multiple-choice"},
        },
    ),
    "MMMU, images as options and one that nothing names": (
        {
            "question": "Which fits?",
            "options": "['<image 2>', '<image 3>']",
            "image_1": "a.png",
            "image_2": "b.png",
            "image_3": "c.png",
            "answer": "A",
        },
        {
            "problem": "<image>Which fits?\nimage 2: <image>\nimage 3: <image>",
            "answer": "A",
            "images": ("a.png", "b.png", "c.png"),
            "kind": "choice",
            "choices": ("image 2", "image 3"),
        },
    ),
    "MMMU, a number that no image has, and an image shown before that is an option too": (
        {
            "question": "See <image 4> and <image 3>.",
            "options": "['<image 3>', '<image 4>']",
            "image_1": "a.png",
            "image_3": "b.png",
            "image_4": "c.png",
            "answer": "A",
        },
        {
            "problem": "<image>See <image> and <image>.",
            "answer": "A",
            "images": ("a.png", "c.png", "b.png"),
            "kind": "choice",
            "choices": ("image 3", "image 2"),
        },
    ),
    "MMMU, open": (
        {"question": "<image 1> How much?", "options": "[]", "image_1": "a.png", "answer": "['24.3', '24.32']"},
        {
            "problem": "<image> How much?",
            "answer": "24.3",
            "equivalent_answers": ("24.32",),
            "images": ("a.png",),
        },
    ),
    "Geometry3K with four choices": (
        {"images": ["a.png"], "problem": "<image>Find x.", "choices": ["3", "4", "5", "6"], "ground_truth": "C"},
        {
            "problem": "<image>Find x.",
            "answer": "C",
            "images": ("a.png",),
            "kind": "choice",
            "choices": ("3", "4", "5", "6"),
        },
    ),
    "choices and the value of one": (
        {"problem": "Find x.", "choices": [3, 4], "answer": 3},
        {"problem": "Find x.", "answer": "3", "choices": ("3", "4"), "kind": "choice"},
    ),
    "choices that a kind hides": (
        {"problem": "Find x.", "choices": [3, 4], "answer": 7, "kind": "number"},
        {"problem": "Find x.", "answer": "7", "choices": ("3", "4"), "kind": "number"},
    ),
    "precision and unit": (
        {"problem": "How long?", "answer": 1.5, "precision": 1.0, "unit": "cm"},
        {"problem": "How long?", "answer": "1.5", "precision": 1, "unit": "cm"},
    ),
    "math12k": ({"problem": "1+1?", "answer": "2"}, {"problem": "1+1?", "answer": "2"}),
    "MATH500": (
        {
            "problem": "1+1?",
            "solution": "It is $\\boxed{2}$.",
            "answer": "2",
            "subject": "Algebra",
            "level": 2,
            "unique_id": "test/algebra/1.json",
        },
        {
            "id": "test/algebra/1.json",
            "problem": "1+1?",
            "answer": "2",
            "solution": "It is $\\boxed{2}$.",
            "metadata": {"subject": "Algebra", "level": 2},
        },
    ),
    "MATH, where only the solution holds the answer": (
        {"problem": "1+1?", "solution": "It is $\\boxed{2}$.", "level": "Level 1"},
        {
            "problem": "1+1?",
            "answer": "2",
            "solution": "It is $\\boxed{2}$.",
            "metadata": {"level": "Level 1"},
        },
    ),
    "AIME24 in capitals": (
        {"ID": "2024-II-4", "Problem": "Find m+n.", "Solution": "See above.", "Answer": 33},
        {"id": "2024-II-4", "problem": "Find m+n.", "answer": "33", "solution": "See above."},
    ),
    "AIME24 with a box as its solution": (
        {"id": 60, "problem": "Find m+n.", "solution": "\\boxed{204}"},
        {"id": "60", "problem": "Find m+n.", "answer": "204"},
    ),
    "AIME25": ({"question": "Find m+n.", "answer": "70"}, {"problem": "Find m+n.", "answer": "70"}),
    "AMC23": ({"id": 0, "question": "How far?", "answer": 27.0}, {"id": "0", "problem": "How far?", "answer": "27"}),
    "HMMT25": (
        {"problem_idx": 1, "problem": "Compute.", "answer": "\\frac{9}{23}", "problem_type": ["Algebra", "Geometry"]},
        {
            "id": "1",
            "problem": "Compute.",
            "answer": "\\frac{9}{23}",
            "metadata": {"problem_type": ("Algebra", "Geometry")},
        },
    ),
    "GSM8K": (
        {"question": "How many clips?", "answer": "She sold 48/2 = <<48/2=24>>24.\nSo 1,024.\n#### 1,024"},
        {"problem": "How many clips?", "answer": "1,024", "solution": "She sold 48/2 = 24.\nSo 1,024."},
    ),
}
