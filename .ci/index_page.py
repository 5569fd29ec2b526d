"""What the build takes as the package's page on an index: README.md, with links and pictures that work away from the repository.

A page on an index has no files beside it. The build may be told where the repository is, as the release workflow does:

    JAXRNN_REPOSITORY=https://host/owner/name python -m build

Then a relative link or picture gets the address of that file at the tag of this version, and the package lists its addresses. Built
without it, anywhere else, the page says the same in plain text, without pictures: no address is better than a wrong one.
"""

import os
import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

ADDRESS = "JAXRNN_REPOSITORY"
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)")
FENCE = re.compile(r"^(```.*?^```$)", flags=re.MULTILINE | re.DOTALL)  # no links inside


def page(readme: str, base: dict[str, str] | None) -> str:
    """README.md with links `base["blob"]/FILE` and pictures `base["raw"]/FILE`, or without either."""

    def replace(link):
        picture, text, target = link["picture"], link["text"], link["target"]
        if "://" in target or target.startswith(("#", "mailto:")):
            return link[0]
        if base is None:
            return "" if picture else text
        return f"{picture}[{text}]({base['raw' if picture else 'blob']}/{target})"

    parts = FENCE.split(readme)
    text = "".join(part if FENCE.match(part) else LINK.sub(replace, part) for part in parts)
    return re.sub(r"\n{3,}", "\n\n", text)


class CustomMetadataHook(MetadataHookInterface):
    """The fields `readme` and `urls` of the package."""

    def update(self, metadata: dict):
        address, base = os.environ.get(ADDRESS, "").rstrip("/"), None
        if address:
            if not re.fullmatch(r"https://[^/\s]+/[^/\s]+/[^/\s]+", address):
                raise ValueError(f"{ADDRESS} should be https://HOST/OWNER/NAME, got {address!r}.")
            base = {kind: f"{address}/{kind}/v{metadata['version']}" for kind in ("blob", "raw")}
            metadata["urls"] = {
                "Source": address,
                "Documentation": f"{base['blob']}/.docs/guides/first_steps.md",
                "Changes": f"{base['blob']}/.docs/changes.md",
                "Issues": f"{address}/issues",
            }
        readme = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": page(readme, base)}
