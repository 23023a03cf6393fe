package config

import (
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// rlimits is an object from names of limits to their values.
type rlimits struct{}

func (rlimits) read(d *document, path string, n *node, v *service.Quota) {
	if n.kind == isText && n.text == "max" {
		*v = service.Of(service.Unlimited)
		return
	}
	if !d.want(n, path, isObject) {
		return
	}
	var list []service.Rlimit
	for p := range d.pairs(path, n) {
		field := join(path, p.key)
		kind, err := service.ParseRlimitKind(p.key)
		if err != nil {
			d.fault(p.offset, field, "%v", err)
			continue
		}
		if p.value.kind != isText && p.value.kind != isNumber {
			d.fault(p.value.offset, field, `is %s; it wants a number, or a string such as "8MiB" or "1024:4096", soft and hard`, kindNames[p.value.kind])
			continue
		}
		l, err := kind.Parse(p.value.text)
		if err != nil {
			d.fault(p.value.offset, field, "%s", strings.TrimLeft(strings.TrimPrefix(err.Error(), kind.String()), ": "))
			continue
		}
		list = append(list, l)
	}
	*v = service.OfRlimits(list)
}

func (rlimits) write(q service.Quota) any {
	switch {
	case !q.Set:
		return nil
	case q.Value == service.Unlimited:
		return "max"
	}
	list, err := service.ParseRlimits(q.Text)
	if err != nil {
		return nil
	}
	out := ordered{}
	for _, l := range list {
		out = append(out, entry{l.Kind.String(), l.Value()})
	}
	return out
}

func (rlimits) schema(service.Quota) *jsonschema.Schema {
	value := &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		{Type: "integer", Minimum: jsonschema.Ptr(0.0)},
		{Type: "string", Pattern: `^(max|[0-9]+(KiB|MiB|GiB|TiB)?)(:(max|[0-9]+(KiB|MiB|GiB|TiB)?))?$`},
	}}
	all := &jsonschema.Schema{Type: "object", Properties: map[string]*jsonschema.Schema{}, AdditionalProperties: nothing}
	for _, kind := range service.RlimitKinds() {
		all.Properties[kind.String()] = value.CloneSchemas()
	}
	return &jsonschema.Schema{AnyOf: []*jsonschema.Schema{all, {Type: "string", Enum: []any{"max"}}}}
}
