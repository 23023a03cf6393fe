package config

import (
	"syscall"
	"time"

	"github.com/google/jsonschema-go/jsonschema"

	"github.com/gladsheim/gladsheim/agent/service"
)

var reload = object[service.Reload]{
	absent: service.Reload.IsZero,
	keys: []key[service.Reload]{
		at("signal", "Signal to the main process, by name or number.",
			optionalSignal{}, func(r *service.Reload) *syscall.Signal { return &r.Signal }),
		at("exec", "Instead of signal: the absolute path of a program, then its arguments, which is run as the service is, beside it and in its cgroup.",
			texts{min: 1, first: &jsonschema.Schema{Type: "string", Pattern: "^/"}}, func(r *service.Reload) *[]string { return &r.Exec }),
		at("timeout", "How long exec may run; 30s when left out.",
			optionalDuration{duration{10 * time.Millisecond, time.Hour}}, func(r *service.Reload) *time.Duration { return &r.Timeout }),
	},
	check: func(d *document, path string, n *node, r *service.Reload) {
		_, signalled := n.has("signal")
		_, executed := n.has("exec")
		if !signalled && !executed {
			d.fault(n.offset, path, "says no way: write signal or exec")
		}
		if _, given := n.has("timeout"); executed && !given {
			r.Timeout = service.DefaultReloadTimeout
		}
	},
	rules: func(s *jsonschema.Schema) {
		s.OneOf = []*jsonschema.Schema{{Required: []string{"signal"}}, {Required: []string{"exec"}}}
	},
}

// optionalSignal is a signal that is 0 when the key is left out.
type optionalSignal struct{ signal }

func (s optionalSignal) write(v syscall.Signal) any {
	if v == 0 {
		return nil
	}
	return s.signal.write(v)
}
