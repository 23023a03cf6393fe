// Package image makes the disk of a machine and finds its kernel, from the packages of one Debian release.
package image

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/test/host/internal/need"
)

// The files of an image.
const (
	Root     = "root.ext4"
	Kernel   = "vmlinuz"
	Packages = "packages.txt" // name and version of all that is installed
)

// Modules are the kernel modules without which a machine finds neither its root nor its port, each after those it needs; then those
// that a host loads by itself when somebody asks for them (sock_diag(7)), which these machines have no programs for. An image holds as NAME.ko those that its kernel has not built in.
var Modules = []string{
	"virtio", "virtio_ring", "virtio_pci_modern_dev", "virtio_pci_legacy_dev", "virtio_pci", "virtio_console", "virtio_blk", "overlay",
	"inet_diag", "tcp_diag", "unix_diag",
}

// packages are the programs a test may use. What dpkg calls essential comes besides.
var packages = []string{
	"systemd", "systemd-sysv", "dbus", "mount", "procps", "iproute2", "curl", "jq",
	"nginx", "redis-server", "redis-tools", "postgresql",
}

// excluded is what no test reads. Without LLVM PostgreSQL does not compile its queries, and 120 MB are saved.
var excluded = []string{
	"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/lintian/*",
	"/usr/lib/*/libLLVM*", "/usr/lib/llvm*", "/usr/lib/postgresql/*/lib/llvmjit*", "/usr/lib/postgresql/*/lib/bitcode/*",
}

// noCluster keeps the installation of PostgreSQL from making a database.
const noCluster = `mkdir -p "$1/etc/postgresql-common" && echo "create_main_cluster = false" > "$1/etc/postgresql-common/createcluster.conf"`

// downloadKernel downloads the kernel's packages without installing them.
//
//go:embed kernel.sh
var downloadKernel string

// makeDatabase leaves an empty PostgreSQL cluster to copy: initdb takes a second here, and fifteen in a machine.
const makeDatabase = `chroot "$1" runuser -u postgres -- sh -c '"$(ls -d /usr/lib/postgresql/*/bin)"/initdb -A trust -U postgres --no-sync -D /var/lib/postgresql/empty'`

const listPackages = `dpkg-query --admindir="$1/var/lib/dpkg" -W > "$PACKAGES"`

// tools are the programs that Make runs.
var tools = []string{"mmdebstrap", "mke2fs", "dpkg-deb", "apt-get", "apt-config", "xz", "zstd"}

// Recipe is all that decides what an image of this suite is like, but for the packages' versions.
func Recipe(suite string) string {
	return fmt.Sprint("image 2 ", suite, packages, excluded, noCluster, downloadKernel, makeDatabase, listPackages, ext4, Modules) + moduleRecipe(suite)
}

// Make makes the image of a Debian suite in dir.
func Make(ctx context.Context, suite, dir string) error {
	if os.Geteuid() != 0 {
		return errors.New("making a machine's disk needs root (once; running it does not)")
	}
	if err := need.Programs(tools...); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, "work-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	tree, debs := filepath.Join(work, "root"), filepath.Join(work, "debs")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return err
	}
	if err := install(ctx, suite, tree, debs, filepath.Join(dir, Packages)); err != nil {
		return err
	}
	if err := addTestPower(ctx, suite, tree, debs, work); err != nil {
		return err
	}
	if err := makeDisk(ctx, tree, filepath.Join(dir, Root)); err != nil {
		return err
	}
	return extractKernel(ctx, debs, work, dir)
}

// install fills tree with the suite's packages and debs with the kernel's.
func install(ctx context.Context, suite, tree, debs, packageList string) error {
	args := []string{
		"--variant=essential", "--include=" + strings.Join(packages, ","),
		"--essential-hook=" + noCluster, "--customize-hook=" + downloadKernel, "--customize-hook=" + makeDatabase, "--customize-hook=" + listPackages,
	}
	for _, path := range excluded {
		args = append(args, "--dpkgopt=path-exclude="+path)
	}
	return bootstrap(ctx, []string{"KERNEL_DIR=" + debs, "PACKAGES=" + packageList}, suite, tree, args...)
}

// bootstrap fills tree with packages of the suite, as args say.
func bootstrap(ctx context.Context, env []string, suite, tree string, args ...string) error {
	args = append([]string{
		"--mode=root", "--format=directory", "--dpkgopt=force-unsafe-io",
		// A mirror that lags behind is good enough for a test; the signatures still count.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
	}, args...)
	proxies, err := proxyOptions(ctx)
	if err != nil {
		return err
	}
	mirror, err := findMirror("/etc/apt")
	if err != nil {
		return err
	}
	args = append(args, proxies...)
	args = append(args, suite, tree, fmt.Sprintf("deb %s %s main", mirror, suite))
	return runTool(ctx, env, "mmdebstrap", args...)
}

// ext4 are the options of a filesystem that is only read: no journal, no spare room.
var ext4 = []string{"-q", "-F", "-t", "ext4", "-O", "^has_journal,^resize_inode", "-m", "0", "-E", "root_owner=0:0"}

// makeDisk makes a disk of the tree without mounting it.
func makeDisk(ctx context.Context, tree, disk string) error {
	// Blocks that are never written stay holes in the file.
	args := append(append([]string{}, ext4...), "-d", tree, disk, "1G")
	return runTool(ctx, nil, "mke2fs", args...)
}

// runTool runs a program at low priority and shows what it said when it fails.
func runTool(ctx context.Context, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(append(os.Environ(), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"), env...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGTERM) }
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		return err
	}
	_ = unix.Setpriority(unix.PRIO_PGRP, cmd.Process.Pid, 5)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, tail(said.String(), 20))
	}
	return nil
}

func tail(text string, lines int) string {
	all := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
