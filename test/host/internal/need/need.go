// Package need says which programs are not there.
package need

import (
	"fmt"
	"os/exec"
	"strings"
)

// Programs fails with the names of all that are not in PATH.
func Programs(names ...string) error {
	var missing []string
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if missing == nil {
		return nil
	}
	return fmt.Errorf("missing on this machine: %s (test/host/install installs them)", strings.Join(missing, ", "))
}
