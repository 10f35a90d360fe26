"""Fails if a public signature names a crate that Cargo.toml does not list under
`package.metadata.public-dependencies`.

Usage: public-dependencies.py Cargo.toml ropewalk.json (--all-features | --no-default-features)
The second file is rustdoc's JSON.
"""

import json
import sys
import tomllib


def identifiers(value):
    """The ids of all types and traits named anywhere in a piece of rustdoc's JSON."""
    if isinstance(value, list):
        for item in value:
            yield from identifiers(item)
    elif isinstance(value, dict):
        if "path" in value and isinstance(value.get("id"), int):
            yield value["id"]
        for item in value.values():
            yield from identifiers(item)


def main(manifest, documentation, features):
    with open(manifest, "rb") as file:
        listed = tomllib.load(file)["package"]["metadata"]["public-dependencies"]
    allowed = {"ropewalk", "core", "alloc", "std", *listed["always"]}
    if features == "--all-features":
        allowed |= set(listed["with-features"])
    with open(documentation) as file:
        crate = json.load(file)

    named = {}
    for item in crate["index"].values():
        inner = item["inner"]
        if item["crate_id"] != 0 or inner.get("impl", {}).get("blanket_impl"):
            continue  # somebody else's, for every type there is
        for at in identifiers(inner):
            path = crate["paths"].get(str(at))
            if path:
                of = "ropewalk" if path["crate_id"] == 0 else crate["external_crates"][str(path["crate_id"])]["name"]
                named.setdefault(of, set()).add("::".join(path["path"]))
    print("public:", ", ".join(sorted(set(named) - {"ropewalk", "core", "alloc", "std"})))
    unlisted = {of: sorted(types) for of, types in named.items() if of not in allowed}
    for of, types in sorted(unlisted.items()):
        print(f"not listed as public: {of}, by {', '.join(types)}", file=sys.stderr)
    return 1 if unlisted else 0


sys.exit(main(*sys.argv[1:]))
