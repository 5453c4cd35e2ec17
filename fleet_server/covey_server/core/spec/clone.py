"""A campaign file under another name: the text as its author wrote it, comments and all, with two values replaced."""

from __future__ import annotations

import json

import yaml

from covey_server.core.document import MAX_BYTES, DocumentError


def renamed(text: str, name: str, version: str | None) -> str:
    """The campaign file with another `name`, and another `version` if that is given; YAML or JSON, as it was read before.

    >>> renamed("# nightly\\nname: a  # short\\nversion: '1'\\n", "b", "2")
    '# nightly\\nname: "b"  # short\\nversion: "2"\\n'
    """
    wanted = {"name": name} | ({} if version is None else {"version": version})
    # JSON may have tabs between its tokens, where YAML may not.
    node = yaml.compose(text.replace("\t", " "), Loader=yaml.SafeLoader)
    if not isinstance(node, yaml.MappingNode):
        raise DocumentError("a campaign file is a mapping: name, model, version, stages …")
    spans = [
        (value.start_mark.index, value.end_mark.index, wanted[key.value])
        for key, value in node.value
        if isinstance(value, yaml.ScalarNode) and key.value in wanted
    ]
    for start, end, value in sorted(spans, reverse=True):
        text = text[:start] + json.dumps(value) + text[end:]
    if len(text.encode()) > MAX_BYTES:
        raise DocumentError(f"more than {MAX_BYTES} bytes")
    return text
