from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmlet.api import pb
from swarmlet.cli.formatting import struct_of
from swarmlet.cli.template import Fields, Template, TemplateError


def render(text: str, **fields: Any) -> str:
    return Template(text).render(Fields(fields))


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{.Name}}: {{.Count}}", "web: 3"),
        ("{{upper .Name}}", "WEB"),
        ("{{.Name | upper | lower}}", "web"),
        ("{{json .Tags}}", '["a","b"]'),
        ('{{join .Tags ", "}}', "a, b"),
        ("{{index .Tags 1}}", "b"),
        ('{{index .Labels "k"}}', "v"),
        ("{{.Labels.k}}{{.Labels.none}}", "v<no value>"),
        ("{{.Tags}} {{.Labels}} {{.On}}", "[a b] map[k:v] true"),
        ("{{println .Name}}", "web\n"),
        ('{{printf "%s=%v" .Name .Count}}', "web=3"),
        ("{{if .On}}yes{{else}}no{{end}}", "yes"),
        ("{{if eq .Count 1}}one{{else if eq .Count 3}}three{{else}}many{{end}}", "three"),
        ("{{range .Tags}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $t := .Tags}}{{$i}}{{$t}}{{end}}", "0a1b"),
        ("{{range $k, $v := .Labels}}{{$k}}={{$v}}{{end}}", "k=v"),
        ("{{range .Empty}}x{{else}}none{{end}}", "none"),
        ("{{with .Labels}}{{.k}}{{$.Name}}{{end}}", "vweb"),
        ("a  {{- .Name -}}  b", "awebb"),
        ("{{/* a note */}}x", "x"),
        ("{{len .Tags}}{{(index .Tags 0)}}", "2a"),
        ("{{if and .On (gt .Count 2)}}{{not .On}}{{end}}", "false"),
        ('{{"}}"}}{{`a`}}', "}}a"),
        ("{{pad .Name 1 2}}|", " web  |"),
    ],
)
def test_templates_render_as_gos(text: str, rendered: str) -> None:
    fields = {"Name": "web", "Count": 3, "Tags": ["a", "b"], "Labels": {"k": "v"}, "On": True, "Empty": []}

    assert render(text, **fields) == rendered


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{.Foo}}", """:1:2: executing "" at <.Foo>: can't evaluate field Foo"""),
        ("a\n {{ .Foo }}", """:2:4: executing "" at <.Foo>: can't evaluate field Foo"""),
        ("{{.Name.X}}", """:1:2: executing "" at <.Name.X>: can't evaluate field X"""),
        ("{{.Nothing.X}}", """:1:2: executing "" at <.Nothing.X>: nil pointer evaluating X"""),
        ("{{foo .Name}}", """:1: function "foo" not defined"""),
        ("{{.Name", ":1: unclosed action"),
        ("{{if .Name}}", ":1: unexpected EOF"),
        ("{{end}}", ":1: unexpected {{end}}"),
    ],
)
def test_wrong_templates_are_refused_in_gos_words(text: str, reason: str) -> None:
    with pytest.raises(TemplateError) as raised:
        render(text, Name="web", Nothing=None)

    assert str(raised.value) == f"template parsing error: template: {reason}"


@given(st.text(alphabet='{}.|$ "`()-=:,Nameifrgdwthlso19\n', max_size=40))
def test_any_text_renders_or_is_refused_as_a_template(text: str) -> None:
    try:
        render(text, Name="web")
    except TemplateError:
        return


def test_a_template_sees_absent_fields_of_an_object_with_their_zero_value() -> None:
    service = pb.Service(id="abc")
    service.spec.mode.replicated.replicas = 2
    shown = struct_of(service)

    assert Template("{{.ID}}|{{.Spec.Name}}|{{.Spec.Mode.Replicated.Replicas}}").render(shown) == "abc||2"
    assert Template("{{.Spec.EndpointSpec}}").render(shown) == "<no value>"
    assert Template("{{json .Spec.Mode}}").render(shown) == '{"Replicated":{"Replicas":2}}'
    with pytest.raises(TemplateError, match="can't evaluate field Nope"):
        Template("{{.Spec.Nope}}").render(shown)
