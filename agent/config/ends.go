package config

import (
	"fmt"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// ends is an array of exit codes and names of signals.
type ends struct{}

func (ends) read(d *document, path string, n *node, v *service.Ends) {
	if !d.want(n, path, isArray) {
		return
	}
	var all service.Ends
	for i, item := range n.items {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.places[field] = item.offset
		before := len(d.faults)
		var x service.Exit
		switch {
		case item.kind == isNumber:
			whole[int]{low: 0, high: 255}.read(d, field, item, &x.Code)
		case item.kind == isText && strings.Trim(item.text, "0123456789") != "":
			signal{}.read(d, field, item, &x.Signal)
		default:
			d.fault(item.offset, field, `wants an exit code, which is a number, 0 to 255, or the name of a signal, such as "SIGTERM"`)
		}
		if len(d.faults) > before {
			continue
		}
		if all.Has(x) {
			d.fault(item.offset, field, "%s is there twice", item.text)
		}
		all = all.And(x)
	}
	*v = all
}

func (ends) write(v service.Ends) any {
	if v.IsZero() {
		return nil
	}
	return v.Words()
}

func (ends) schema(service.Ends) *jsonschema.Schema {
	return &jsonschema.Schema{Type: isArray.schemaType(), UniqueItems: true, Items: &jsonschema.Schema{AnyOf: []*jsonschema.Schema{
		{Type: "integer", Minimum: jsonschema.Ptr(0.0), Maximum: jsonschema.Ptr(255.0)},
		{Type: "string", Pattern: strings.Replace(signalForm.String(), "|[1-9]|[1-5][0-9]|6[0-4]", "", 1)},
	}}}
}
