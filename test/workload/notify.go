package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
)

// runNotify says to the agent what it is told to, line by line, and prints what became of it.
// A line "@SOCKET MESSAGE" is said to another socket; ";" stands for the end of a line.
func runNotify(args []string) error {
	if len(args) != 1 {
		return errors.New("name one FIFO")
	}
	orders, err := os.OpenFile(args[0], os.O_RDWR, 0) // so that it never ends
	if err != nil {
		return err
	}
	ready()
	lines := bufio.NewScanner(orders)
	for lines.Scan() {
		line, socket := strings.ReplaceAll(lines.Text(), ";", "\n"), os.Getenv("NOTIFY_SOCKET")
		if message, ok := strings.CutPrefix(line, ">"); ok { // a child is to go on in its stead
			return handOver(socket, message, args)
		}
		if to, ok := strings.CutPrefix(line, "@"); ok {
			socket, line, _ = strings.Cut(to, " ")
		}
		if err := say(socket, line); err != nil {
			fmt.Println("not said:", line, err)
			continue
		}
		fmt.Println("said:", lines.Text())
	}
	return lines.Err()
}

// handOver leaves all to a child, and says so, as who forks its main process does.
func handOver(socket, message string, args []string) error {
	argv := self(append([]string{"notify"}, args...)...)
	child, err := os.StartProcess("/proc/self/exe", argv, &os.ProcAttr{Files: []*os.File{os.Stdin, os.Stdout, os.Stderr}})
	if err != nil {
		return err
	}
	return say(socket, fmt.Sprintf("MAINPID=%d\n%s", child.Pid, message))
}

func say(socket, message string) error {
	conn, err := net.Dial("unixgram", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write([]byte(message))
	return err
}
