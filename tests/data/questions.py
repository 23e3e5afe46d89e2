"""Made-up questions about long contexts, in the Hub's columns for SQuAD."""

from __future__ import annotations

from typing import Any

LIGHTHOUSE = (
    "The lighthouse on Gull Rock was lit for the first time on 3 May 1871, after eleven years of work. Its builder, "
    "Ada Thornley, had asked for granite from the mainland, but storms sank two of the three barges, and the upper "
    "half is made of local slate instead. For sixty-two years the lamp burned whale oil, then paraffin; in 1933 an "
    "electric lamp of 1,500 watts took its place. The keepers lived in a cottage below the tower, which could only be "
    "reached by a rope bridge of 40 metres. The last keeper, Tom Reed, left the rock in the autumn of 1984 (he had "
    "asked to stay), and since then the light has been switched on and off by a clock. Every spring about 9,000 "
    "puffins nest on the northern slope."
)
ORCHARD = (
    '  Naïve visitors to the orchard at Zürich-Höngg often ask for its "blue apples". There are none: the name comes '
    "from a translation error in a catalogue of 1902, where 'blaue Pflaumen' (blue plums) became apples. The orchard "
    "holds 312 trees of 47 kinds. In a good year it gives 28 tonnes of fruit, of which a third is pressed on the spot. "
    "The press, a gift of the town's brewers, dates from 1788 and needs four people. It costs €3.50 to taste all the "
    "juices — the oldest recipe mixes pears, quinces and a little ginger. Bees from the university's hives visit the "
    "trees from April on; in return the students get honey and, once a year, a party under the lanterns."
)
QUESTIONS: list[tuple[str, str, list[str]]] = [
    ("When was the lighthouse first lit?", LIGHTHOUSE, ["3 May 1871", "on 3 May 1871"]),
    ("Who built the lighthouse?", LIGHTHOUSE, ["Ada Thornley"]),
    ("What is the upper half made of?", LIGHTHOUSE, ["local slate", "slate"]),
    ("How strong was the lamp of 1933?", LIGHTHOUSE, ["1,500 watts"]),
    ("How did one reach the cottage?", LIGHTHOUSE, ["a rope bridge of 40 metres", "rope bridge"]),
    ("Who was the last keeper?", LIGHTHOUSE, ["Tom Reed"]),
    ("How many puffins nest on the rock?", LIGHTHOUSE, ["about 9,000", "9,000"]),
    ("Where is the orchard?", ORCHARD, ["Zürich-Höngg"]),
    ("What were the blue apples really?", ORCHARD, ["blue plums", "'blaue Pflaumen'"]),
    ("How many trees are there?", ORCHARD, ["312"]),
    ("What does a tasting cost?", ORCHARD, ["€3.50"]),
    ("What do the students get?", ORCHARD, ["honey and, once a year, a party under the lanterns", "honey"]),
]


def answer(context: str, *texts: str) -> dict[str, list]:
    """Point to texts that occur in a context, each where it first stands."""
    return {"text": list(texts), "answer_start": [context.index(text) for text in texts]}


def question_columns(**changed: list[Any]) -> dict[str, list]:
    """Return all questions as columns, some of them replaced."""
    columns = {
        "question": [question for question, _, _ in QUESTIONS],
        "context": [context for _, context, _ in QUESTIONS],
        "answers": [answer(context, *texts) for _, context, texts in QUESTIONS],
    }
    return columns | changed
