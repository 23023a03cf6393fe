package failpoint

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"time"
)

// Listen makes the socket that orders come through, for its owner alone. One that
// a process left which was killed is replaced.
func Listen(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("cannot listen for orders: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen for orders: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("cannot listen for orders: %w", err)
	}
	return l, nil
}

// Serve takes orders until l is closed: a line each, answered with a line. "hits"
// asks how often points were hit ("POINT=N; …"), "arm TEXT" is Arm, whose answer is
// "ok" or what is wrong.
func (s *Set) Serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.answer(conn)
	}
}

// orderTime bounds one order: whoever gives it is on this host.
const orderTime = 10 * time.Second

func (s *Set) answer(conn net.Conn) {
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(orderTime))
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return
	}
	fmt.Fprintln(conn, s.obey(strings.TrimSuffix(line, "\n")))
}

func (s *Set) obey(order string) string {
	if text, ok := strings.CutPrefix(order, "arm "); ok {
		if err := s.Arm(text); err != nil {
			return err.Error()
		}
		return "ok"
	}
	if order != "hits" {
		return "there is no such order"
	}
	var parts []string
	for p, n := range s.Hits() {
		parts = append(parts, fmt.Sprintf("%s=%d", p, n))
	}
	return strings.Join(parts, "; ")
}
