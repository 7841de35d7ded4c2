"""The verifier `number`."""

import re
from decimal import Decimal

from opdscope_scorer.verifiers.base import verifier

# A minus sign belongs to the number only where nothing stands before it that it could subtract from.
_NUMBER = re.compile(r"(?:(?<![\w.)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")


@verifier
def number(output: str, answer: str) -> bool:
    """Accepts an output whose last number equals the answer; `1,200.0` equals `1200`."""
    found, wanted = _last_number(output), _last_number(answer)
    return found is not None and found == wanted


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(numbers[-1].replace(",", "")) if numbers else None
