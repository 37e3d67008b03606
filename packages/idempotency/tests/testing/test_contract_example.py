"""The store in `docs/store-contract.md` passes the contract, run by the test class that the page defines."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from idempotency.testing import StoreContract

PAGE = Path(__file__).parents[4] / "docs" / "store-contract.md"


def namespace_of_the_page() -> dict[str, Any]:
    page = sys.modules["store_contract_page"] = ModuleType("store_contract_page")
    program = "\n".join(re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    exec(compile(program, str(PAGE), "exec"), page.__dict__)
    return page.__dict__


TestDictStore = namespace_of_the_page()["TestDictStore"]


def test_the_page_defines_a_contract_test_class_for_its_store() -> None:
    assert issubclass(TestDictStore, StoreContract)
