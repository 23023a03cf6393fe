package machine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/gladsheim/gladsheim/test/host/internal/cache"
	"github.com/gladsheim/gladsheim/test/host/internal/hosts"
	"github.com/gladsheim/gladsheim/test/host/internal/image"
	"github.com/gladsheim/gladsheim/test/host/internal/need"
	"github.com/gladsheim/gladsheim/test/host/internal/wire"
)

// The files of a snapshot.
const (
	initrdName = "initrd.cpio"
	ramName    = "ram"
	stateName  = "state"
)

// Maker makes snapshots and keeps them.
type Maker struct {
	Store cache.Store
	Guest string // the guest program
}

// Snapshot is a machine frozen when it was ready for a job.
type Snapshot struct {
	image, frozen cache.Entry
	boot          string
}

// Snapshot returns the host's, made first if need be.
func (m Maker) Snapshot(ctx context.Context, host hosts.Host) (Snapshot, error) {
	if err := need.Programs(Program); err != nil {
		return Snapshot{}, err
	}
	version, err := exec.CommandContext(ctx, Program, "--version").Output()
	if err != nil {
		return Snapshot{}, fmt.Errorf("%s: %w", Program, err)
	}
	img, err := m.image(ctx, host.Suite)
	if err != nil {
		return Snapshot{}, err
	}
	guest, err := cache.HashFile(m.Guest)
	if err != nil {
		return Snapshot{}, err
	}
	s := Snapshot{image: img, boot: bootArguments(host)}
	commandLine := strings.Join(hardware{boot: s.boot, keepRAM: true}.arguments(), " ")
	key := cache.Key("snapshot 1", img.Hash, guest, string(version), commandLine)
	s.frozen, err = m.Store.Get(ctx, "snapshot-"+host.Name, key, func(ctx context.Context, dir string) error {
		m.Store.Log("%s: booting it once, to be woken from then on (about 20 s)", host.Name)
		return m.freeze(ctx, s, dir)
	})
	return s, err
}

func (m Maker) image(ctx context.Context, suite string) (cache.Entry, error) {
	return m.Store.Get(ctx, "image-"+suite, cache.Key(image.Recipe(suite)), func(ctx context.Context, dir string) error {
		m.Store.Log("Debian %s: downloading and installing it (about a minute)", suite)
		return image.Make(ctx, suite, dir)
	})
}

// bootArguments tells the kernel and the guest program what host to be.
func bootArguments(host hosts.Host) string {
	return fmt.Sprintf("psi=1 systemd.show_status=0 systemd.log_level=notice testhost.init=%s testhost.name=%s", host.Init, host.Name)
}

// freeze boots the machine in dir until it is ready, and leaves its memory and state there.
func (m Maker) freeze(ctx context.Context, s Snapshot, dir string) error {
	scratch, err := os.MkdirTemp("", "gladsheim-host-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(scratch)
	payload := filepath.Join(scratch, "payload")
	if err := hole(payload, PayloadSize); err != nil {
		return err
	}
	if err := hole(filepath.Join(dir, ramName), memorySize); err != nil {
		return err
	}
	if err := writeInitrd(filepath.Join(dir, initrdName), m.Guest, s.image); err != nil {
		return err
	}
	h, err := s.hardware(scratch, payload)
	if err != nil {
		return err
	}
	h.ram, h.initrd, h.keepRAM, h.wake = filepath.Join(dir, ramName), filepath.Join(dir, initrdName), true, false

	machine, err := start(ctx, scratch, h)
	if err != nil {
		return err
	}
	err = machine.booted()
	if err == nil {
		err = machine.save(filepath.Join(dir, stateName))
	}
	if err != nil {
		return machine.Failed(err)
	}
	machine.Kill()
	return nil
}

// booted waits until the machine is ready for a job.
func (m *Machine) booted() error {
	kind, _, err := m.Port.Receive()
	if err == nil && kind != wire.Ready {
		err = fmt.Errorf("frame %d instead of ready", kind)
	}
	return err
}

// save writes the state of the devices; the memory is in its file.
func (m *Machine) save(path string) error {
	if err := m.qmp.setCapabilities(); err != nil {
		return err
	}
	if err := m.qmp.do("migrate", map[string]any{"uri": "exec:cat > " + quote(path)}); err != nil {
		return err
	}
	return m.qmp.migrated()
}

// Wake starts a machine from the snapshot, in the folder dir and with that payload disk.
func (s Snapshot) Wake(ctx context.Context, dir, payload string) (*Machine, error) {
	h, err := s.hardware(dir, payload)
	if err != nil {
		return nil, err
	}
	machine, err := start(ctx, dir, h)
	if err != nil {
		return nil, err
	}
	if err := machine.load(s.frozen.Path(stateName)); err != nil {
		return nil, machine.Failed(err)
	}
	return machine, nil
}

// Boot boots the machine from its beginning instead, and keeps what it writes on the disk, a file that is made if it is not there, in the
// place of the empty one.
func (s Snapshot) Boot(ctx context.Context, dir, payload, disk string) (*Machine, error) {
	if _, err := os.Stat(disk); errors.Is(err, fs.ErrNotExist) {
		if err := makeDisk(ctx, disk); err != nil {
			return nil, err
		}
	}
	h, err := s.hardware(dir, payload)
	if err != nil {
		return nil, err
	}
	h.ram, h.wake, h.disk, h.boot = filepath.Join(dir, ramName), false, disk, s.boot+" testhost.disk=/dev/vdc"
	if err := hole(h.ram, memorySize); err != nil {
		return nil, err
	}
	machine, err := start(ctx, dir, h)
	if err != nil {
		return nil, err
	}
	if err := machine.booted(); err != nil {
		return nil, machine.Failed(err)
	}
	return machine, nil
}

// makeDisk makes an empty disk. It appears complete or not at all.
func makeDisk(ctx context.Context, disk string) error {
	made := disk + ".new"
	out, err := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", made, "1G").CombinedOutput()
	if err != nil {
		return fmt.Errorf("mke2fs %s: %w\n%s", made, err, out)
	}
	return os.Rename(made, disk)
}

func (m *Machine) load(path string) error {
	if err := m.qmp.setCapabilities(); err != nil {
		return err
	}
	return m.qmp.do("migrate-incoming", map[string]any{"uri": "exec:cat " + quote(path)})
}

// hardware of a machine woken from the snapshot, with an empty disk in the folder dir.
func (s Snapshot) hardware(dir, payload string) (hardware, error) {
	disk := filepath.Join(dir, "scratch")
	return hardware{
		kernel: s.image.Path(image.Kernel), root: s.image.Path(image.Root), initrd: s.frozen.Path(initrdName),
		payload: payload, ram: s.frozen.Path(ramName), boot: s.boot, wake: true, disk: disk,
	}, hole(disk, scratchSize)
}

// hole makes a file of that size which takes no room.
func hole(path string, size int64) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer file.Close()
	return file.Truncate(size)
}

// quote protects a path in a shell command.
func quote(path string) string { return "'" + strings.ReplaceAll(path, "'", `'\''`) + "'" }
