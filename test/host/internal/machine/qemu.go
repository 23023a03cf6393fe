// Package machine boots emulated machines with QEMU, freezes one that is ready, and wakes any number of it.
package machine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/gladsheim/gladsheim/test/host/internal/wire"
)

// Program is the emulator.
const Program = "qemu-system-x86_64"

const (
	memorySize  = 2 << 30
	consoleName = "console.log"

	// PayloadSize is the size of the payload disk. The machine learns it once, when it boots; it is mostly a hole.
	PayloadSize = 4 << 30

	// ScratchDisk is the disk that a test may write on, in the machine. It is mostly a hole as well.
	ScratchDisk = "/dev/vdc"
	scratchSize = 1 << 30
)

// hardware is what a machine is made of. The paths are its only differences between runs.
type hardware struct {
	kernel, initrd, root string // files of the image
	payload              string // a disk with the tar of what the job needs
	ram                  string // the file that is its memory
	keepRAM              bool   // changes go to the file; otherwise they are this machine's own
	boot                 string // kernel arguments
	wake                 bool   // wait for the state of a frozen machine; otherwise boot
	disk                 string // what it may write on
}

// quiet are kernel arguments that save time: checks of the (emulated) hardware, mitigations for faults it does not have, security
// modules that nobody here has rules for, memory zeroed twice, timers finer than a tick, huge pages, for which the emulator forgets
// all translations whenever a program gives back a small one, and programs loaded at another address each time, of which it translates
// every instruction anew.
const quiet = "console=ttyS0 quiet loglevel=3 panic=-1 tsc=reliable no_timer_check nokaslr cryptomgr.notests audit=0 mitigations=off random.trust_cpu=on transparent_hugepage=never init_on_alloc=0 highres=off norandmaps randomize_kstack_offset=off hardened_usercopy=off nowatchdog lsm="

// processor is a plain one: what it lacks (wide registers, SMAP, a fifth level of page tables) costs time to emulate. It has no
// CMPXCHG16B either: QEMU 7.2 leaves rubbish in EFLAGS after it, and an interrupt at that moment is a double fault of the guest's
// kernel (in its allocator, within a minute of many forks).
const processor = "qemu64,-cx16,+rdrand,+rdtscp,+fsgsbase"

// arguments is the emulator's command line. QMP is on descriptor 3, the port on 4.
func (h hardware) arguments() []string {
	share, threads := "off", "multi"
	if h.keepRAM {
		share = "on"
	}
	if !h.wake {
		// One processor at a time, for the kernel patches itself while it boots: units/quota.slice of the guest program tells more.
		threads = "single"
	}
	args := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "pc,memory-backend=ram", "-accel", "tcg,thread=" + threads, "-cpu", processor, "-smp", "2", "-m", "size=" + fmt.Sprint(memorySize>>20),
		"-object", "memory-backend-file,id=ram,size=" + fmt.Sprint(memorySize) + ",mem-path=" + escape(h.ram) + ",share=" + share,
		"-chardev", "file,id=console,path=" + consoleName, "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
		"-chardev", "socket,id=port,fd=4", "-device", "virtio-serial-pci", "-device", "virtserialport,chardev=port,name=gladsheim",
		"-drive", "file=" + escape(h.root) + ",format=raw,if=virtio,readonly=on",
		"-drive", "file=" + escape(h.payload) + ",format=raw,if=virtio,readonly=on",
		"-drive", "file=" + escape(h.disk) + ",format=raw,if=virtio",
		"-kernel", h.kernel, "-initrd", h.initrd, "-append", quiet + " " + h.boot,
	}
	if h.wake {
		args = append(args, "-incoming", "defer")
	}
	return args
}

// escape protects a comma in a path, which separates options.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// Machine is a running emulator.
type Machine struct {
	Port *wire.Conn

	dir    string
	cmd    *exec.Cmd
	port   *os.File
	qmp    *qmp
	qmpEnd *os.File
	said   bytes.Buffer
}

// start starts the emulator with dir as its working directory. It ends when ctx does.
func start(ctx context.Context, dir string, h hardware) (*Machine, error) {
	qmpHere, qmpThere, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer qmpThere.Close()
	portHere, portThere, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer portThere.Close()

	m := &Machine{dir: dir, port: portHere, Port: wire.NewConn(portHere), qmp: newQMP(qmpHere), qmpEnd: qmpHere}
	m.cmd = exec.CommandContext(ctx, Program, h.arguments()...)
	m.cmd.Dir = dir
	m.cmd.ExtraFiles = []*os.File{qmpThere, portThere}
	m.cmd.Stdout, m.cmd.Stderr = &m.said, &m.said
	m.cmd.SysProcAttr = &unix.SysProcAttr{
		Setpgid:   true, // Ctrl-C is for us; we kill it
		Pdeathsig: unix.SIGKILL,
	}
	if err := m.cmd.Start(); err != nil {
		return nil, err
	}
	if err := m.qmp.greet(); err != nil {
		return nil, m.Failed(err)
	}
	return m, nil
}

// Pause stops all of the machine, its clocks included, until Continue.
func (m *Machine) Pause() error { return m.qmp.do("stop", nil) }

// Continue lets a paused machine go on.
func (m *Machine) Continue() error { return m.qmp.do("cont", nil) }

// Kill ends the machine at once, as if its power was cut. What it has written to a disk that is kept is there, as on a disk whose
// own memory outlives the cut; what its kernel still held back is lost.
func (m *Machine) Kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
	m.port.Close()
	m.qmpEnd.Close()
}

// Console is what the kernel and the init said.
func (m *Machine) Console() string {
	text, _ := os.ReadFile(filepath.Join(m.dir, consoleName))
	return string(text)
}

// Failed kills the machine and adds to err what it left behind.
func (m *Machine) Failed(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) {
		err = errors.New("the machine went down")
	}
	m.Kill()
	for _, part := range []struct{ name, text string }{{Program, m.said.String()}, {"console", m.Console()}} {
		if text := strings.TrimSpace(part.text); text != "" {
			err = fmt.Errorf("%w\n--- %s:\n%s", err, part.name, text)
		}
	}
	return err
}

// socketPair returns two ends of a connection, the second to be inherited.
func socketPair() (here, there *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	// Non-blocking before NewFile, or a read could not be ended by closing.
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(fds[0]), "here"), os.NewFile(uintptr(fds[1]), "there"), nil
}

// qmp is the emulator's control connection.
type qmp struct {
	in  *json.Decoder
	out *json.Encoder
}

// message is anything it says.
type message struct {
	Return json.RawMessage
	Error  *struct{ Desc string }
	Event  string
	Data   struct{ Status string }
}

func newQMP(rw io.ReadWriter) *qmp { return &qmp{json.NewDecoder(rw), json.NewEncoder(rw)} }

// greet reads the greeting and says which features of QMP we use: none.
func (q *qmp) greet() error {
	var greeting message
	if err := q.in.Decode(&greeting); err != nil {
		return err
	}
	return q.do("qmp_capabilities", nil)
}

// do carries out one command.
func (q *qmp) do(command string, arguments map[string]any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := q.out.Encode(request); err != nil {
		return err
	}
	for {
		var reply message
		if err := q.in.Decode(&reply); err != nil {
			return err
		}
		switch {
		case reply.Error != nil:
			return fmt.Errorf("%s: %s", command, reply.Error.Desc)
		case reply.Return != nil:
			return nil
		}
	}
}

// migrated waits until the machine's state has gone where it was sent.
func (q *qmp) migrated() error {
	for {
		var event message
		if err := q.in.Decode(&event); err != nil {
			return err
		}
		switch {
		case event.Event != "MIGRATION":
		case event.Data.Status == "completed":
			return nil
		case event.Data.Status == "failed":
			return errors.New("the machine's state could not be saved")
		}
	}
}

// capabilities for freezing and waking: memory is in a file already and stays there; events tell how far it is.
func (q *qmp) setCapabilities() error {
	var list []map[string]any
	for _, name := range []string{"x-ignore-shared", "events"} {
		list = append(list, map[string]any{"capability": name, "state": true})
	}
	return q.do("migrate-set-capabilities", map[string]any{"capabilities": list})
}
