"""The API reference, docs/api/: a page a file of the contract, with comments and rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
)

from tools.contract.rules import field_rules, message_rules
from tools.contract.source import FOLDER, Source, comments, file_comment, numbered

PACKAGE = ".unmask.v1."
_MESSAGES = FileDescriptorProto.MESSAGE_TYPE_FIELD_NUMBER
_ENUMS = FileDescriptorProto.ENUM_TYPE_FIELD_NUMBER
_SERVICES = FileDescriptorProto.SERVICE_FIELD_NUMBER
_FIELDS = DescriptorProto.FIELD_FIELD_NUMBER
_ONEOFS = DescriptorProto.ONEOF_DECL_FIELD_NUMBER
_SECOND = 2
"""The number of the methods of a service, and of the values of an enum."""

Found = Iterator[str]

INDEX = """# API reference

Made from `proto/unmask/v1` by `make pages`. Package `unmask.v1`. What a field must keep to is
stated in the contract by [protovalidate](https://protovalidate.com); the server enforces it and
names the field and the rule ([errors](../errors.md)). What may change and what may not: see
[versioning](../versioning.md).
"""


def pages(source: Source) -> dict[str, str]:
    """The pages by their names in docs/api/."""
    homes: dict[str, str] = {}
    for file in source.files:
        names = [*(m.name for m in file.message_type), *(e.name for e in file.enum_type)]
        homes |= dict.fromkeys(names, page_name(file))
    made = {page_name(file): "\n".join(_page(source, file, homes)) for file in source.files}
    return {"README.md": "\n".join(_index(source)), **made}


def page_name(file: FileDescriptorProto) -> str:
    """Of a file's page."""
    return file.name.removeprefix(FOLDER).replace(".proto", ".md")


def _index(source: Source) -> Found:
    yield INDEX
    yield "| method | |"
    yield "| --- | --- |"
    for file in source.files:
        said = comments(file)
        for path, service in numbered(file.service, _SERVICES):
            for at, method in numbered(service.method, *path, _SECOND):
                link = f"{page_name(file)}#{method.name.lower()}"
                first = said[at].partition("\n\n")[0].replace("\n", " ").partition(". ")[0]
                yield f"| [{service.name}.{method.name}]({link}) | {_cell(first.rstrip('.'))} |"
    yield ""
    yield "| file | |"
    yield "| --- | --- |"
    for file in source.files:
        yield f"| [{file.name}]({page_name(file)}) | {_cell(file_comment(file))} |"
    yield ""


def _page(source: Source, file: FileDescriptorProto, homes: Mapping[str, str]) -> Found:
    said = comments(file)
    here = page_name(file)

    def link(name: str) -> str:
        home = homes[name]
        return f"[{name}]({'' if home == here else home}#{name.lower()})"

    yield f"# {file.name}"
    yield ""
    yield file_comment(file)
    yield ""
    for path, service in numbered(file.service, _SERVICES):
        yield f"## {service.name}"
        yield ""
        yield said[path]
        yield ""
        for at, method in numbered(service.method, *path, _SECOND):
            asked, given = (
                link(name.removeprefix(PACKAGE)) for name in (method.input_type, method.output_type)
            )
            stream = "stream of " if method.server_streaming else ""
            yield f"### {method.name}"
            yield ""
            yield f"{asked} → {stream}{given}"
            yield ""
            yield said[at]
            yield ""
    for path, message in numbered(file.message_type, _MESSAGES):
        yield from _message(source, message, path, said, link)
    for path, enum in numbered(file.enum_type, _ENUMS):
        yield f"## {enum.name}"
        yield ""
        yield said[path]
        yield ""
        yield "| value | number | |"
        yield "| --- | --- | --- |"
        for at, value in numbered(enum.value, *path, _SECOND):
            yield f"| `{value.name}` | {value.number} | {_cell(said[at])} |"
        yield ""


def _message(
    source: Source, message: DescriptorProto, path: tuple[int, ...], said: Any, link: Any
) -> Found:
    yield f"## {message.name}"
    yield ""
    yield said[path]
    yield ""
    if (together := source.rules("message", message.options)) is not None:
        yield from (f"- {rule}" for rule in message_rules(together))
        yield ""
    choices = [choice for choice in message.oneof_decl if not choice.name.startswith("_")]
    for i, choice in enumerate(choices):
        rules = source.rules("oneof", choice.options)
        fields = [f"`{f.name}`" for f in message.field if _in_choice(f, i)]
        many = "Exactly one" if rules is not None and rules.required else "At most one"
        note = said.get((*path, _ONEOFS, i), "")
        yield f"- `{choice.name}`: {many.lower()} of {', '.join(fields)}. {note}".rstrip()
        yield ""
    if not message.field:
        yield "No fields."
        yield ""
        return
    yield "| field | number | type | rules | |"
    yield "| --- | --- | --- | --- | --- |"
    for at, field in numbered(message.field, *path, _FIELDS):
        rules = source.rules("field", field.options)
        enum = source.pool.FindEnumTypeByName(field.type_name[1:]) if _is_enum(field) else None
        names = {value.number: value.name for value in enum.values} if enum is not None else {}
        stated = "; ".join(field_rules(rules, names)) if rules is not None else ""
        yield (
            f"| `{field.name}` | {field.number} | {_type(message, field, link)} | "
            f"{_cell(stated)} | {_cell(said[at])} |"
        )
    yield ""


def _in_choice(field: FieldDescriptorProto, number: int) -> bool:
    return (
        field.HasField("oneof_index") and field.oneof_index == number and not field.proto3_optional
    )


def _is_enum(field: FieldDescriptorProto) -> bool:
    return field.type == FieldDescriptorProto.TYPE_ENUM


def _type(message: DescriptorProto, field: FieldDescriptorProto, link: Any) -> str:
    name = _type_name(field, link)
    for entry in message.nested_type:
        if field.type_name.endswith(f".{entry.name}") and entry.options.map_entry:
            return (
                f"map of {_type_name(entry.field[0], link)} to {_type_name(entry.field[1], link)}"
            )
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _type_name(field: FieldDescriptorProto, link: Any) -> str:
    if field.type_name.startswith(PACKAGE) and "." not in field.type_name.removeprefix(PACKAGE):
        return str(link(field.type_name.removeprefix(PACKAGE)))
    if field.type_name:
        return field.type_name.removeprefix(".")
    return FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()


def _cell(text: str) -> str:
    return text.replace("\n", " ").replace("|", "\\|")
