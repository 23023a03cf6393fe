package main

import (
	"crypto/rand"
	"embed"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const newRoot = "/new"

// initramfs puts the root together and hands over to the host's init.
func initramfs() error {
	for _, m := range []struct{ kind, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if err := mount(m.kind, m.at, m.kind, 0, ""); err != nil {
			return err
		}
	}
	kind, err := bootArg("init")
	if err != nil {
		return err
	}
	modules, err := filepath.Glob("/*.ko")
	if err != nil {
		return err
	}
	for _, module := range modules {
		if err := loadModule(module); err != nil {
			return err
		}
	}
	if err := mountRoot("/dev/vda"); err != nil {
		return err
	}
	name, err := bootArg("name")
	if err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return err
	}
	if _, err := os.Stat(newRoot + programPath); err != nil { // else a disk of its own has made it this host before
		if err := settle(kind, name); err != nil {
			return err
		}
	}
	if err := switchRoot(); err != nil {
		return err
	}
	env := []string{"PATH=" + systemPath, "TERM=linux"}
	if kind == "systemd" {
		return unix.Exec("/sbin/init", []string{"/sbin/init"}, env)
	}
	return unix.Exec(programPath, []string{programPath, "own-init"}, env)
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	if err := unix.FinitModule(int(file.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", path, err)
	}
	return nil
}

// mountRoot mounts the disk read-only with memory over it: any number of machines use one disk, and each starts fresh. A machine
// that has a disk of its own has that over it instead.
func mountRoot(disk string) error {
	if err := waitFor(disk); err != nil {
		return err
	}
	if err := mount(disk, "/lower", "ext4", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if kept, err := bootArg("disk"); err == nil {
		if err := waitFor(kept); err != nil {
			return err
		}
		if err := mount(kept, "/rw", "ext4", 0, ""); err != nil {
			return err
		}
	} else if err := mount("tmpfs", "/rw", "tmpfs", 0, "mode=0755,nr_inodes=0"); err != nil {
		return err
	}
	for _, dir := range []string{"/rw/upper", "/rw/work"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	return mount("overlay", newRoot, "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work")
}

// waitFor returns when the device file is there: its driver may still be looking at the disk.
func waitFor(device string) error {
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(watch)
	if _, err := unix.InotifyAddWatch(watch, filepath.Dir(device), unix.IN_CREATE); err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		if _, err := os.Stat(device); err == nil {
			return nil
		}
		if _, err := unix.Read(watch, buf); err != nil && err != unix.EINTR {
			return err
		}
	}
}

//go:embed units
var units embed.FS

// settle writes what makes a plain Debian this host: identity, the runner's program, and for systemd its unit.
// The program comes last and tells that the rest is there.
func settle(kind, name string) error {
	id := make([]byte, 16)
	if _, err := rand.Read(id); err != nil {
		return err
	}
	// A UUID of version 4, or systemd calls it invalid.
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	for path, text := range map[string]string{
		"/etc/hostname":    name + "\n",
		"/etc/hosts":       "127.0.0.1 localhost " + name + "\n::1 localhost ip6-localhost\n",
		"/etc/machine-id":  fmt.Sprintf("%x\n", id),
		"/etc/resolv.conf": "",
		"/etc/fstab":       "",
	} {
		if err := write(path, []byte(text), 0o644); err != nil {
			return err
		}
	}
	if kind == "systemd" {
		if err := settleSystemd(); err != nil {
			return err
		}
	}
	program, err := os.ReadFile("/init")
	if err != nil {
		return err
	}
	unix.Sync()
	return write(programPath, program, 0o755)
}

const unitDir = "/etc/systemd/system"

// settleSystemd leaves of the distribution's boot what a test could notice.
func settleSystemd() error {
	// Nothing that packages enabled may start: the ports belong to the tests.
	for _, target := range []string{"multi-user.target.wants", "timers.target.wants", "getty.target.wants", "network-online.target.wants"} {
		if err := os.RemoveAll(newRoot + filepath.Join(unitDir, target)); err != nil {
			return err
		}
	}
	// Generators run at every daemon-reload, and here find nothing: no fstab, no kernel arguments, no gettys.
	generators, err := filepath.Glob(newRoot + "/usr/lib/systemd/system-generators/*")
	if err != nil {
		return err
	}
	for _, generator := range generators {
		if err := mask(filepath.Join("/etc/systemd/system-generators", filepath.Base(generator))); err != nil {
			return err
		}
	}
	for _, unit := range masked {
		if err := mask(filepath.Join(unitDir, unit)); err != nil {
			return err
		}
	}
	err = fs.WalkDir(units, "units", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := units.ReadFile(path)
		if err != nil {
			return err
		}
		below, err := filepath.Rel("units", path)
		if err != nil {
			return err
		}
		return write(filepath.Join(unitDir, below), text, 0o644)
	})
	if err != nil {
		return err
	}
	wants := newRoot + filepath.Join(unitDir, "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return err
	}
	return os.Symlink("../gtest.service", filepath.Join(wants, "gtest.service"))
}

// masked are units for hardware, modules, logins and upkeep, none of which these machines have.
var masked = []string{
	"systemd-modules-load.service", "modprobe@.service", "getty.target", "console-getty.service",
	"systemd-hwdb-update.service", "systemd-journal-catalog-update.service", "ldconfig.service", "systemd-update-done.service",
	"systemd-random-seed.service", "systemd-boot-random-seed.service", "systemd-remount-fs.service",
	// It subscribes to all news of process 1, and to tell them costs more than all else that a start of a unit costs.
	"systemd-logind.service",
}

func mask(path string) error {
	full := newRoot + path
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	_ = os.Remove(full)
	return os.Symlink("/dev/null", full)
}

// write replaces a file of the new root.
func write(path string, content []byte, mode os.FileMode) error {
	full := newRoot + path
	if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
		return err
	}
	_ = os.Remove(full) // it may be a link to elsewhere
	return os.WriteFile(full, content, mode)
}

// switchRoot makes the new root the only one.
func switchRoot() error {
	for _, at := range []string{"/proc", "/sys", "/dev"} {
		if err := os.MkdirAll(newRoot+at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(at, newRoot+at, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", at, err)
		}
	}
	if err := mount("tmpfs", newRoot+"/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777,nr_inodes=0"); err != nil {
		return err
	}
	_ = os.Remove("/init") // the old root is memory
	if err := unix.Chdir(newRoot); err != nil {
		return err
	}
	if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
		return err
	}
	if err := unix.Chroot("."); err != nil {
		return err
	}
	return unix.Chdir("/")
}
