"""What a diagnosis is as JSON and as text."""

import io
import json

from handwritten import Net, geometric
from rich.console import Console

from gradscope import diagnose


def test_dictionary_is_json_and_text_escapes_markup():
    """to_dict has no NaN; names with rich markup are shown as they are."""
    net = geometric(Net(12), 0.5)
    diagnosis, _ = net.diagnose()
    raw = json.loads(json.dumps(diagnosis.to_dict(), allow_nan=False))
    assert raw["verdict"] == "vanishing"
    assert raw["findings"][0]["kind"] == "vanishing"
    assert raw["findings"][0]["evidence"]["slope"]["unit"] == "decades per block"
    assert set(raw["findings"][0]) == {
        "kind", "severity", "where", "since", "message", "evidence", "remedy"
    }  # fmt: skip
    hostile = Net(8)
    hostile.structure = {"unused": ("[red]boo[/red].weight", "x[/].weight")}
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(diagnose(hostile.trace()))
    assert "[red]boo[/red].weight, x[/].weight" in console.export_text()
