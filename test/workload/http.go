package main

import (
	"bufio"
	"fmt"
	"net"
	"strings"
	"time"
)

// runHTTP speaks just enough HTTP/1.1 to answer a health check; net/http would
// treble the size of the binary.
func runHTTP(args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("an address is needed")
	}
	failAfter, err := duration(args, 1)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	start := time.Now()
	ready(listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go answer(conn, func() bool { return failAfter == 0 || time.Since(start) < failAfter })
	}
}

func answer(conn net.Conn, well func() bool) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	request, err := in.ReadString('\n')
	if err != nil {
		return
	}
	for line := ""; line != "\r\n"; {
		if line, err = in.ReadString('\n'); err != nil {
			return
		}
	}
	status := "404 Not Found"
	if path := strings.Fields(request); len(path) == 3 && path[1] == "/health" {
		status = "200 OK"
		if !well() {
			status = "503 Service Unavailable"
		}
	}
	fmt.Fprintf(conn, "HTTP/1.1 %s\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n", status, len(status)+1, status)
}
