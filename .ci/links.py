"""What the package's description on an index needs of an address: links, also those of the README.

The address is `address` under `[tool.nbbn]` in pyproject.toml. While it is empty, there are none.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r'(\]\(|src="|srcset=")(?![a-z]+:|#)')


class Links(MetadataHookInterface):
    """Fill in `urls` and `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        settings = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["tool"]["nbbn"]
        text, address = (root / "README.md").read_text("utf-8"), settings["address"]
        metadata["urls"] = {}
        if address:
            metadata["urls"] = {
                "Source": address,
                "Issues": f"{address}/issues",
                "Changes": f"{address}/blob/main/docs/changelog.md",
            }
            link, picture = f"{address}/blob/main/", f"{address}/raw/main/"
            text = _RELATIVE.sub(lambda m: m[1] + (link if m[1] == "](" else picture), text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
