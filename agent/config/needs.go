package config

import (
	"fmt"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

// needs is an array of names of services or, where conditions are served, of objects
// with one.
type needs struct{ conditions bool }

var need = object[service.Need]{keys: []key[service.Need]{
	at("service", "Name of the other service.",
		name{}, func(n *service.Need) *service.Name { return &n.Service }).needed(),
	at("condition", "How far it has to be: started, its program runs; ready, it serves, or its job is done; healthy, its health checks say so besides; completed, its job is done.",
		word[service.Condition]{values: []service.Condition{
			service.ConditionReady, service.ConditionStarted, service.ConditionHealthy, service.ConditionCompleted,
		}}, func(n *service.Need) *service.Condition { return &n.Condition }),
}}

func (t needs) read(d *document, path string, n *node, v *[]service.Need) {
	if !d.want(n, path, isArray) {
		return
	}
	list := make([]service.Need, len(n.items))
	for i, item := range n.items {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.places[field] = item.offset
		switch {
		case item.kind == isText:
			name{}.read(d, field, item, &list[i].Service)
		case item.kind == isObject && t.conditions:
			need.read(d, field, item, &list[i])
			if _, given := item.has("service"); !given {
				d.fault(item.offset, join(field, "service"), "is required: the name of a service")
			}
		case t.conditions:
			d.fault(item.offset, field, `is %s; it wants the name of a service, or {"service": NAME, "condition": HOW_FAR}`, kindNames[item.kind])
		default:
			d.fault(item.offset, field, "is %s; it wants the name of a service, without a condition", kindNames[item.kind])
		}
	}
	if len(list) > 0 {
		*v = list
	} else {
		*v = nil
	}
}

func (t needs) write(v []service.Need) any {
	if len(v) == 0 {
		return nil
	}
	out := make([]any, len(v))
	for i, n := range v {
		if out[i] = any(n.Service.String()); n.Condition != service.ConditionReady {
			out[i] = need.write(n)
		}
	}
	return out
}

func (t needs) schema([]service.Need) *jsonschema.Schema {
	item := name{}.schema(service.Name{})
	if t.conditions {
		item = &jsonschema.Schema{AnyOf: []*jsonschema.Schema{item, need.schema(service.Need{})}}
	}
	return &jsonschema.Schema{Type: isArray.schemaType(), Items: item, MaxItems: jsonschema.Ptr(256)}
}
