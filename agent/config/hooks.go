package config

import (
	"fmt"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

var hooks = object[service.Hooks]{
	absent: service.Hooks.IsZero,
	keys: []key[service.Hooks]{
		at("pre_start", "Run before the program begins; one that fails ends the start.",
			programs{}, func(h *service.Hooks) *[][]string { return &h.PreStart }),
		at("post_start", "Run when the service has become ready; it counts as that when they have ended well, and one that fails ends the start.",
			programs{}, func(h *service.Hooks) *[][]string { return &h.PostStart }),
		at("pre_stop", "Run before a service that has been ready is told to end, within stop.timeout.",
			programs{}, func(h *service.Hooks) *[][]string { return &h.PreStop }),
		at("post_stop", "Run when nothing of the service lives any more, however it ended, a failed start included.",
			programs{}, func(h *service.Hooks) *[][]string { return &h.PostStop }),
		at("timeout", "How long each may run; 30s when left out.",
			optionalDuration{duration{10 * time.Millisecond, 24 * time.Hour}}, func(h *service.Hooks) *time.Duration { return &h.Timeout }),
	},
	check: func(_ *document, _ string, n *node, h *service.Hooks) {
		if _, given := n.has("timeout"); !given && !h.IsZero() {
			h.Timeout = service.DefaultHookTimeout
		}
	},
}

// programs is a list of programs, each with its arguments.
type programs struct{}

var program = texts{min: 1, first: &jsonschema.Schema{Type: "string", Pattern: "^/"}}

func (programs) read(d *document, path string, n *node, v *[][]string) {
	if !d.want(n, path, isArray) {
		return
	}
	list := make([][]string, len(n.items))
	for i, item := range n.items {
		field := fmt.Sprintf("%s[%d]", path, i)
		d.places[field] = item.offset
		program.read(d, field, item, &list[i])
	}
	*v = list
}

func (programs) write(v [][]string) any {
	if len(v) == 0 {
		return nil
	}
	return v
}

func (programs) schema([][]string) *jsonschema.Schema {
	return &jsonschema.Schema{Type: "array", Items: program.schema(nil), MaxItems: jsonschema.Ptr(service.MaxHooks)}
}
