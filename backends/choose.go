package backends

import (
	"fmt"
	"strings"

	"github.com/gladsheim/gladsheim/agent/service"
)

// Choose picks the backend for a launch mode among those the host offers, the
// preferred one first. A mode that the host does not offer is refused with
// service.Unenforceable; nothing else is taken in its stead.
func Choose(offered []Backend, mode service.LaunchMode) (Backend, error) {
	want := map[service.LaunchMode]string{service.LaunchScope: "systemd", service.LaunchCgroup: "cgroupfs"}[mode]
	var names []string
	for _, b := range offered {
		if mode == service.LaunchAuto || b.Name() == want {
			return b, nil
		}
		names = append(names, b.Name())
	}
	return nil, &service.Error{Op: "choose a backend", Kind: service.Unenforceable,
		Err: fmt.Errorf("launch %q needs the %s backend, and this host offers %s", mode, want, strings.Join(names, ", "))}
}
