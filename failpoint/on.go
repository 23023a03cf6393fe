//go:build failpoints

package failpoint

import (
	"fmt"
	"os"
	"path/filepath"
)

// Enabled tells whether points do anything. It is a constant, so that what only
// leads to a point can be left out of a release.
const Enabled = true

var armed Set

// Hit marks that a step was done.
func Hit(p Point) error { return armed.Hit(p) }

// Serve takes orders for the points, in runDir and from the environment.
func Serve(runDir string) error {
	if err := armed.Arm(os.Getenv("GLADSHEIM_FAILPOINTS")); err != nil {
		return fmt.Errorf("cannot read GLADSHEIM_FAILPOINTS: %w", err)
	}
	l, err := Listen(filepath.Join(runDir, "failpoints.sock"))
	if err != nil {
		return err
	}
	go armed.Serve(l)
	return nil
}
