package image

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// TestPower is the module in the machine. The kernel's package has none, so that it is made of the kernel's source, which takes most of
// a minute: for the machines of one release.
const TestPower = "/usr/lib/gladsheim-testhost/test_power.ko"

var withTestPower = []string{"trixie"}

//go:embed module.sh
var makeModule string

// moduleRecipe is what Recipe has for the module, "" for a suite without.
func moduleRecipe(suite string) string {
	if !slices.Contains(withTestPower, suite) {
		return ""
	}
	return "module 1" + makeModule
}

// addTestPower makes the module for the kernel in debs and puts it into tree.
func addTestPower(ctx context.Context, suite, tree, debs, work string) error {
	if !slices.Contains(withTestPower, suite) {
		return nil
	}
	images, err := filepath.Glob(filepath.Join(debs, "linux-image-*.deb"))
	if err != nil || len(images) != 1 {
		return fmt.Errorf("want one package of a kernel's image, found %v", images)
	}
	name, _, _ := strings.Cut(filepath.Base(images[0]), "_")
	kernel := strings.TrimPrefix(name, "linux-image-")
	module := filepath.Join(tree, TestPower)
	if err := os.MkdirAll(filepath.Dir(module), 0o755); err != nil {
		return err
	}
	args := []string{
		"--variant=apt", "--include=linux-source,make,xz-utils,linux-headers-" + kernel, "--dpkgopt=path-exclude=/usr/share/doc/*",
		"--customize-hook=" + makeModule,
	}
	return bootstrap(ctx, []string{"KERNEL=" + kernel, "MODULE=" + module}, suite, filepath.Join(work, "module"), args...)
}
