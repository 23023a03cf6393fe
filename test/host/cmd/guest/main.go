// Guest is the program inside a test machine: it boots it as /init and runs the test's command there.
//
// It runs in three places. As /init of the initramfs it puts the root together and hands over to the init of the host:
// systemd, or itself again. As process 1 of a host without systemd it mounts, starts the runner, and reaps.
// As the runner it waits for a job on the virtio-serial port, which is where the snapshot is taken, and does it.
package main

import (
	"fmt"
	"log"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const programPath = "/usr/lib/gladsheim-testhost/guest"

func main() {
	log.SetFlags(0)
	log.SetPrefix("guest: ")
	// Kernels append to our arguments what they do not know themselves.
	role, do := "initramfs", initramfs
	switch strings.Join(os.Args[1:], " ") {
	case "own-init":
		role, do = "own-init", ownInit
	case "runner":
		role, do = "runner", runner
	}
	err := do()
	log.Printf("%s: %v", role, err)
	// Whoever has the machine sees it end, and shows the console with the line above.
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	os.Exit(1)
}

// bootArg returns a testhost.KEY=VALUE of the kernel command line.
func bootArg(key string) (string, error) {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return "", err
	}
	for _, word := range strings.Fields(string(line)) {
		if value, found := strings.CutPrefix(word, "testhost."+key+"="); found {
			return value, nil
		}
	}
	return "", fmt.Errorf("no testhost.%s on the kernel command line", key)
}

// mount makes the mount point too.
func mount(source, at, kind string, flags uintptr, data string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(source, at, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s: %w", at, err)
	}
	return nil
}
