// Command wireclient is an old client: it was generated from nothing but the table
// of the first contract, and tells a service's story to a running agent, start to
// stop, checking every answer. It runs on the agent's own host, prints a line for
// each step, and leaves with 1 at the first wrong answer.
//
// The service must be registered, stopped, and one that runs until it is stopped.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/gladsheim/gladsheim/test/wireclient/oldpb"
)

func main() {
	addr := flag.String("addr", "unix:///run/gladsheim/gladsheim.sock", "the agent's `address`")
	name := flag.String("service", "", "the `name` of the service to tell of")
	memory := flag.Uint64("memory-mb", 64, "memory limit to start with, in `MiB`")
	cpu := flag.Float64("cpu", 20, "CPU limit to start with, in `percent` of a core, at least 2")
	patience := flag.Duration("patience", 30*time.Second, "how long any one step may take")
	titled := flag.Bool("titled", false, "the program writes its title over its environment, which is then not looked at")
	flag.Parse()
	if *name == "" || *cpu < 2 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}

	conn, err := grpc.NewClient(*addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		fmt.Fprintf(os.Stderr, "wireclient: cannot use address %s: %v\n", *addr, err)
		os.Exit(2)
	}
	s := &story{
		agent:    oldpb.NewGladsheimServiceClient(conn),
		name:     *name,
		memory:   *memory << 20,
		cpu:      float32(*cpu),
		patience: *patience,
		environ:  func(pid int32) ([]byte, error) { return os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)) },
		alive:    func(pid int32) bool { return syscall.Kill(int(pid), 0) != syscall.ESRCH },
	}
	if *titled {
		s.environ = nil
	}
	if err := s.tell(context.Background(), func(line string) { fmt.Println(line) }); err != nil {
		fmt.Fprintln(os.Stderr, "wireclient:", err)
		os.Exit(1)
	}
}
