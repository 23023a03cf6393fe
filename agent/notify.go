package agent

import (
	"fmt"
	"os"
	"os/user"
	"strconv"

	"github.com/gladsheim/gladsheim/agent/service"
	"github.com/gladsheim/gladsheim/notify"
)

// ears are what thjalfi sees of what services say of themselves.
type ears struct{ *notify.Listener }

// Provide makes the socket of a service.
func (e ears) Provide(spec *service.Spec) error {
	_, err := e.open(spec)
	return err
}

func (e ears) open(spec *service.Spec) (path string, err error) {
	uid, err := uidOf(spec.User)
	if err != nil {
		return "", err
	}
	return e.Open(spec.Name, uid)
}

// uidOf is the number of a user in a definition.
func uidOf(name string) (int, error) {
	if name == "" {
		return os.Geteuid(), nil
	}
	if uid, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(uid), nil
	}
	entry, err := user.Lookup(name)
	if err != nil {
		return 0, fmt.Errorf("find the user of its socket: %w", err)
	}
	return strconv.Atoi(entry.Uid)
}

// mayNotify tells whether what bears a name in the directory of sockets may be known to a
// service that runs.
func (a *Agent) mayNotify(text string) bool {
	name, err := service.ParseName(text)
	if err != nil {
		return false
	}
	s, known := a.registry.Get(name)
	return known && s.Machine.State.Alive()
}
