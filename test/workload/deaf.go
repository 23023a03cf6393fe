package main

import (
	"fmt"
	"net"
	"time"
)

// runDeaf listens and accepts nobody; with AFTER, it serves until then.
func runDeaf(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("a network and an address are needed")
	}
	after, err := duration(args, 2)
	if err != nil {
		return err
	}
	listener, err := net.Listen(args[0], args[1])
	if err != nil {
		return err
	}
	ready(listener.Addr())
	for end := time.Now().Add(after); time.Now().Before(end); {
		if err := listener.(interface{ SetDeadline(time.Time) error }).SetDeadline(end); err != nil {
			return err
		}
		if conn, err := listener.Accept(); err == nil {
			conn.Close()
		}
	}
	forever()
	return nil
}

// runSlow accepts one connection in each PERIOD, and keeps the others waiting.
func runSlow(args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("an address and a period are needed")
	}
	period, err := duration(args, 1)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	ready(listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		time.Sleep(period)
		conn.Close()
	}
}
