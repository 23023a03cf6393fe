package power

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// order is what the hand is to do: run a script, or call the agent.
type order struct {
	ID     int
	Script string `json:",omitempty"`
	Method string `json:",omitempty"`
	Body   []byte `json:",omitempty"` // the request, encoded
}

// answer is what came of it.
type answer struct {
	ID      int
	Body    []byte // the script's output, or the response, encoded
	Code    int    // the script's exit code, or gRPC's
	Message string // what went wrong with a call
}

const asHand = "GLADSHEIM_TEST_HAND"

func TestMain(m *testing.M) {
	if os.Getenv(asHand) == "" {
		goleak.VerifyTestMain(m)
		return
	}
	if err := hand(); err != nil {
		fmt.Fprintln(os.Stderr, "hand:", err)
		os.Exit(1)
	}
}

// hand carries out orders, each as soon as it comes, until there are no more.
func hand() error {
	agent, err := grpc.NewClient("unix:///run/gladsheim/gladsheim.sock", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
	if err != nil {
		return err
	}
	defer agent.Close()
	var mu sync.Mutex
	orders, answers := json.NewDecoder(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		var o order
		if err := orders.Decode(&o); err != nil {
			return err
		}
		go func() {
			a := o.carryOut(agent)
			mu.Lock()
			defer mu.Unlock()
			_ = answers.Encode(a) // there is nobody else to tell
		}()
	}
}

func (o order) carryOut(agent *grpc.ClientConn) answer {
	if o.Method != "" {
		var body []byte
		err := agent.Invoke(context.Background(), o.Method, o.Body, &body)
		s := status.Convert(err)
		return answer{o.ID, body, int(s.Code()), s.Message()}
	}
	out, err := exec.Command("sh", "-ec", o.Script).CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return answer{ID: o.ID, Body: out, Code: exit.ExitCode()}
	case err != nil:
		return answer{ID: o.ID, Body: []byte(err.Error()), Code: 127}
	}
	return answer{ID: o.ID, Body: out}
}

// raw passes messages on as they are.
type raw struct{}

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = data
	return nil
}
func (raw) Name() string { return "proto" }
