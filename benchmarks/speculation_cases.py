"""What `speculation.py` asks: short tasks that a model of 135 million parameters does by copying,
and texts in which there is nothing to copy.

Small models seldom obey; these are the forms in which one does: an example before the task, or a
text that is to be given back.
"""

from __future__ import annotations

from dataclasses import dataclass

NOTE = (
    "The harbour master keeps a ledger of every vessel that enters the bay, its tonnage, its flag "
    "and the name of its captain. On the second of March, a schooner from Lisbon arrived with salt "
    "and cork. On the ninth, two barges came down the river with timber, and one of them had lost "
    "its rudder near the old mill."
)


@dataclass(frozen=True)
class Prompt:
    """chat: it is a request, for the model's chat template; else a text to be continued. stop: what
    ends the answer before all tokens are there.
    """

    name: str
    text: str
    chat: bool = False
    temperature: float = 0.0
    stop: str = ""


REPEATING = (
    Prompt("edit: give a text back", f"Repeat this text exactly:\n\n{NOTE}", chat=True, stop="\n"),
    Prompt(
        "edit: correct the spelling",
        "Correct the spelling mistakes in this text and give the whole text back:\n\n"
        + NOTE.replace("ledger", "leger").replace("second", "secund").replace("arrived", "arived"),
        chat=True,
        stop="\n",
    ),
    Prompt(
        "edit: replace a word",
        "Task: replace every word 'red' by 'blue'.\n\n"
        "Input: The red boat lies beside the red barn, and the farmer paints the door in the same "
        "colour.\n"
        "Output: The blue boat lies beside the blue barn, and the farmer paints the door in the "
        "same colour.\n\n"
        "Input: A red fox ran over the hill, past the mill and the old red bridge, and vanished in "
        "the woods behind the church before the hunters came with their dogs and horns, and nobody "
        "in the village saw it again until the snow had melted in the fields.\n"
        "Output:",
        stop="\n",
    ),
    Prompt(
        "extraction: log lines to JSON",
        "Log: 2024-03-02 10:15 host=alpha user=maria action=login status=ok duration=35\n"
        'JSON: {"date": "2024-03-02", "time": "10:15", "host": "alpha", "user": "maria", '
        '"action": "login", "status": "ok", "duration": 35}\n\n'
        "Log: 2024-03-02 10:17 host=beta user=john action=upload status=failed duration=120\n"
        'JSON: {"date": "2024-03-02", "time": "10:17", "host": "beta", "user": "john", '
        '"action": "upload", "status": "failed", "duration": 120}\n\n'
        "Log: 2024-03-02 10:21 host=gamma user=wei action=delete status=ok duration=8\nJSON:",
    ),
    Prompt(
        "extraction: rows of a table",
        "| name | age | city | job |\n|---|---|---|---|\n| Alice | 31 | Paris | baker |\n"
        "| Bob | 25 | London | pilot |\n| Carla | 44 | Rome | judge |\n"
        "| Dmitri | 38 | Riga | nurse |\n\nThe same table again:\n\n"
        "| name | age | city | job |\n|---|---|---|---|\n",
    ),
    Prompt(
        "code: a class under another name",
        "# before\nclass Account:\n    def __init__(self, owner, balance=0):\n"
        "        self.owner = owner\n        self.balance = balance\n        self.history = []\n\n"
        "    def deposit(self, amount):\n        if amount <= 0:\n"
        '            raise ValueError("amount must be positive")\n'
        "        self.balance += amount\n"
        '        self.history.append(("deposit", amount))\n\n'
        "    def withdraw(self, amount):\n        if amount > self.balance:\n"
        '            raise ValueError("not enough money")\n        self.balance -= amount\n'
        '        self.history.append(("withdraw", amount))\n\n'
        "# after: the class is called Wallet\nclass Wallet:\n    def __init__(self, owner,",
    ),
    Prompt(
        "code: the same function, typed",
        "def area(width, height):\n    return width * height\n\n"
        "def area(width: float, height: float) -> float:\n    return width * height\n\n"
        "def normalise(values, low, high):\n    span = high - low\n    if span == 0:\n"
        '        raise ValueError("low and high are equal")\n'
        "    result = []\n    for value in values:\n"
        "        result.append((value - low) / span)\n    return result\n\n"
        "def normalise(values: list[float], low: float, high: float) -> list[float]:\n"
        "    span = high",
    ),
)

WORST = (
    Prompt("a story", "Write a short story about a dragon who learns to bake.", chat=True),
    Prompt(
        "a story, temperature 1",
        "Write a short story about a lighthouse and its keeper.",
        chat=True,
        temperature=1.0,
    ),
    Prompt(
        "digits by chance",
        "Digits of a table of random numbers: 4 8 1 5 1 6 2 3 4 2 0 9 7 3 5 8 8 1 6 0 2 7 4 9 3 "
        "7 9 4 6 2 0 8 5 3 3 7 1 9 6",
        temperature=1.0,
    ),
    Prompt(
        "sentences that differ in the end",
        "".join(
            f"On day {day} of the journey the captain wrote in his book that the wind was {wind}.\n"
            for day, wind in enumerate(
                ("fair", "cold", "gone", "mild", "wild", "dry", "low", "sharp", "kind", "lost"), 1
            )
        ),
        temperature=0.8,
    ),
)
