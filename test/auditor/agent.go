package auditor

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// answers is what the agent says.
type answers struct {
	pid      int // of the agent
	services map[string]*gladsheimv1.ServiceStatus
}

// answerTime is how long the agent may take to answer.
const answerTime = 30 * time.Second

// ask asks the agent what it knows.
func (v *view) ask(ctx context.Context) error {
	if v.host.Socket == "" {
		return errors.New("its socket was not named")
	}
	pid, err := listener(v.host.Socket)
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient("unix://"+v.host.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	list, err := gladsheimv1.NewGladsheimServiceClient(conn).ListServices(ctx, &gladsheimv1.ListServicesRequest{})
	if err != nil {
		return err
	}
	v.answers = &answers{pid: pid, services: map[string]*gladsheimv1.ServiceStatus{}}
	for _, s := range list.GetServices() {
		v.answers.services[s.GetServiceName()] = s
	}
	return nil
}

// listener asks the kernel which process listens on a socket.
func listener(path string) (pid int, err error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var peer *syscall.Ucred
	controlErr := raw.Control(func(fd uintptr) {
		peer, err = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	})
	if err := errors.Join(controlErr, err); err != nil {
		return 0, err
	}
	return int(peer.Pid), nil
}
