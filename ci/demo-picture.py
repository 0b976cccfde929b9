"""Make docs/demo.svg, the README's picture, from a real run of the demo."""

import tempfile
from pathlib import Path

from rich.console import Console

from daskmeans.report.demo import demo
from daskmeans.runtime.cluster import ClusterSettings, open_cluster

if __name__ == "__main__":
    console = Console(record=True, width=96, force_terminal=True, color_system="truecolor", highlight=False)
    with tempfile.TemporaryDirectory() as folder, open_cluster(ClusterSettings()) as client:
        result = demo(Path(folder) / "demo", client=client)
    shown = type(result)(result.facts, result.examples[:6], Path("daskmeans-demo/report.html"))
    console.print(shown)
    picture = Path(__file__).parent.parent / "docs" / "demo.svg"
    picture.write_text(console.export_svg(title="daskmeans demo"))
