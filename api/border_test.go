package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/gladsheim/gladsheim/agent/service"
	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// call calls any method with a message of its input type, edited.
func call(ctx context.Context, conn *grpc.ClientConn, full string, edit func(*dynamicpb.Message)) error {
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(full[1:], "/", ".")))
	if err != nil {
		return err
	}
	m := d.(protoreflect.MethodDescriptor)
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	edit(in)
	if !m.IsStreamingServer() {
		return conn.Invoke(ctx, full, in, out)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: m.IsStreamingClient()}, full)
	if err != nil {
		return err
	}
	if err := s.SendMsg(in); err != nil && !errors.Is(err, io.EOF) { // EOF: RecvMsg tells why
		return err
	}
	if err := s.CloseSend(); err != nil {
		return err
	}
	return s.RecvMsg(out)
}

func nothing(*dynamicpb.Message) {}

// methods is every method that gRPC would route.
func (f *fixture) methods() []string {
	var out []string
	for name, info := range f.server.grpc.GetServiceInfo() {
		for _, m := range info.Methods {
			out = append(out, "/"+name+"/"+m.Name)
		}
	}
	return out
}

func TestTheMethodTableIsComplete(t *testing.T) {
	f := newFixture(t)
	require.Len(t, methods, len(f.methods()))
	for _, m := range f.methods() {
		require.Contains(t, methods, m)
	}
}

func TestNothingIsOpenToNobody(t *testing.T) {
	f := newFixtureWith(t, policy{self: 4_000_000_000, group: noGroup})
	f.server.policy.group = noGroup
	require.NoError(t, os.Chmod(f.path, 0o666))
	for _, m := range f.methods() {
		t.Run(m, func(t *testing.T) {
			_, err := f.server.admit(Peer{}, m)
			require.Equal(t, service.Unauthenticated, service.KindOf(err))
			_, err = f.server.admit(Peer{transport: unixSocket, UID: 1234, GID: 1234}, m)
			require.Equal(t, service.Denied, service.KindOf(err))
		})
	}
}

func TestEveryMethodIsRefusedToStrangers(t *testing.T) {
	f := openSocket(t)
	conn := dialAs(t, f.path, 1234, 1234, nil)
	stranger := f.dial("passthrough:///as", grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
	for _, m := range f.methods() {
		t.Run(m, func(t *testing.T) {
			err := call(callContext(t), stranger, m, nothing)
			refused(t, err, codes.PermissionDenied, "DENIED")
		})
	}
	require.Empty(t, f.agent.Calls())
}

func TestAMethodOutsideTheTableIsRefused(t *testing.T) {
	f := newFixture(t)
	full := gladsheimv1.GladsheimService_ListServices_FullMethodName
	saved := methods[full]
	delete(methods, full)
	defer func() { methods[full] = saved }()
	refused(t, call(callContext(t), f.conn, full, nothing), codes.PermissionDenied, "DENIED")
}

func TestPathsThatAreNotQuiteThere(t *testing.T) {
	f := newFixture(t)
	full := gladsheimv1.GladsheimService_StartService_FullMethodName
	for _, path := range []string{
		full[1:], "/" + full, full + "/", strings.ToLower(full), strings.ToUpper(full), strings.Replace(full, "/S", "/%53", 1),
		strings.Replace(full, "/S", "/../S", 1), full + "?x=1", full + "\x00", "/", "", "*", "/gladsheim.v1.GladsheimService",
		"/gladsheim.v1.GladsheimService/", "/gladsheim.v2.GladsheimService/StartService",
	} {
		err := f.conn.Invoke(callContext(t), path, &gladsheimv1.StartServiceRequest{ServiceName: "db"}, &emptypb.Empty{})
		require.Error(t, err, "%q", path)
	}
	require.Empty(t, f.agent.Calls())
}

func TestBadNamesStopAtTheBorder(t *testing.T) {
	f := newFixture(t)
	hostile := []string{
		"", strings.Repeat("a", 64), strings.Repeat("a", 64<<10), "a\x00b", "a/b", "..", "a\nb", "%s%n", "😀", "a\u202eb", "cgroup.procs", "-.slice",
		"a.service", "${HOME}", "$(reboot)", "`reboot`", "a b", "A", "a..b", "/etc/passwd", "a--b", "a-", "1a",
	}
	before := len(f.log.String())
	for _, m := range f.methods() {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(strings.ReplaceAll(m[1:], "/", ".")))
		require.NoError(t, err)
		input := d.(protoreflect.MethodDescriptor).Input()
		one, many := input.Fields().ByName("service_name"), input.Fields().ByName("service_names")
		if one == nil && many == nil {
			continue
		}
		t.Run(m, func(t *testing.T) {
			for _, name := range hostile {
				err := call(callContext(t), f.conn, m, func(in *dynamicpb.Message) {
					if one != nil {
						in.Set(one, protoreflect.ValueOfString(name))
					} else {
						in.Mutable(many).List().Append(protoreflect.ValueOfString(name))
					}
				})
				s := refused(t, err, codes.InvalidArgument, service.ReasonBadName)
				require.Less(t, len(s.Message()), 400)
				require.NotContains(t, s.Message(), "\u202e")
			}
			err := call(callContext(t), f.conn, m, func(in *dynamicpb.Message) {
				if one != nil {
					in.Set(one, protoreflect.ValueOfString("nobody-there"))
				} else {
					in.Mutable(many).List().Append(protoreflect.ValueOfString("nobody-there"))
				}
			})
			s := refused(t, err, codes.NotFound, service.ReasonServiceNotFound)
			require.NotContains(t, s.Message(), "cannot find", "it says what was asked")
		})
	}
	require.Empty(t, f.agent.Calls())
	logged := f.log.String()[before:]
	require.NotContains(t, logged, "\u202e")
	require.NotContains(t, logged, strings.Repeat("a", 64))
	require.NotContains(t, logged, "service=\"a")
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Marshal(v any) ([]byte, error) { return v.([]byte), nil }
func (rawCodec) Unmarshal([]byte, any) error   { return nil }
func (rawCodec) Name() string                  { return "proto" }
func (f *fixture) raw(t *testing.T, b []byte) error {
	return f.conn.Invoke(callContext(t), gladsheimv1.GladsheimService_GetServiceStatus_FullMethodName, b, nil, grpc.ForceCodec(rawCodec{}))
}

func TestMalformedMessages(t *testing.T) {
	f := newFixture(t)
	for name, b := range map[string][]byte{
		"garbage":            {0xff, 0xff, 0xff},
		"wrong wire type":    {0x08, 0x01, 0x0d},
		"endless varint":     {0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
		"length beyond":      {0x0a, 0x7f, 'a'},
		"overlong UTF-8":     {0x0a, 0x02, 0xc0, 0x80},
		"deep groups":        []byte(strings.Repeat("\x0b", 20000)),
		"name of other type": {0x08, 0x05},
	} {
		t.Run(name, func(t *testing.T) {
			code := status.Code(f.raw(t, b))
			require.Contains(t, []codes.Code{codes.Internal, codes.InvalidArgument}, code)
		})
	}
	web, err := proto.Marshal(&gladsheimv1.ServiceStatusRequest{ServiceName: "web"})
	require.NoError(t, err)
	require.NoError(t, f.raw(t, append(web, 0xba, 0x3e, 0x01, 'x')), "unknown fields are for later versions")
	require.Empty(t, f.crash)
}

func TestCaps(t *testing.T) {
	f := newFixture(t)
	catalog := gladsheimv1.NewCatalogServiceClient(f.conn)
	t.Run("a message that is too large", func(t *testing.T) {
		_, err := catalog.Register(callContext(t), &gladsheimv1.RegisterRequest{Definition: make([]byte, maxReceive+1)})
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	t.Run("one that just fits", func(t *testing.T) {
		_, err := catalog.Register(callContext(t), &gladsheimv1.RegisterRequest{Definition: make([]byte, maxReceive-64)})
		refused(t, err, codes.InvalidArgument, service.ReasonBadDefinition)
	})
	t.Run("compressed", func(t *testing.T) {
		_, err := catalog.ListDefinitions(callContext(t), &gladsheimv1.ListDefinitionsRequest{}, grpc.UseCompressor(gzip.Name))
		_ = err // gzip is linked into this test, so the server knows it; the cap is after decompression
		_, err = catalog.Register(callContext(t), &gladsheimv1.RegisterRequest{Definition: make([]byte, 4*maxReceive)}, grpc.UseCompressor(gzip.Name))
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	t.Run("an answer that is too large", func(t *testing.T) {
		s := f.put("huge", service.Stopped)
		s.Document = make([]byte, maxSend+1)
		_, err := catalog.GetDefinition(callContext(t), &gladsheimv1.GetDefinitionRequest{ServiceName: "huge"}, grpc.MaxCallRecvMsgSize(64<<20))
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
	})
	t.Run("headers", func(t *testing.T) {
		ctx := metadata.AppendToOutgoingContext(callContext(t), "x", strings.Repeat("y", maxHeaders))
		_, err := f.gladsheim().ListServices(ctx, &gladsheimv1.ListServicesRequest{})
		require.Error(t, err)
	})
	t.Run("very many processes", func(t *testing.T) {
		s := f.put("forker", service.Running)
		s.Processes = make([]service.Process, 100_000)
		for i := range s.Processes {
			s.Processes[i].Command = strings.Repeat("x", 2000)
		}
		st, err := f.gladsheim().GetServiceStatus(callContext(t), &gladsheimv1.ServiceStatusRequest{ServiceName: "forker"})
		require.NoError(t, err)
		require.Len(t, st.GetProcesses(), maxProcesses)
	})
	t.Run("streams", func(t *testing.T) {
		f.server.streams = newShares(3, 1)
		events := gladsheimv1.NewEventServiceClient(f.conn)
		ctx, cancel := context.WithCancel(callContext(t))
		for range 3 {
			s, err := events.Watch(ctx, &gladsheimv1.WatchRequest{})
			require.NoError(t, err)
			_, err = s.Recv()
			require.NoError(t, err)
		}
		s, err := events.Watch(ctx, &gladsheimv1.WatchRequest{})
		require.NoError(t, err)
		_, err = s.Recv()
		refused(t, err, codes.ResourceExhausted, "EXHAUSTED")
		cancel()
		require.Eventually(t, func() bool { return f.agent.Watchers() == 0 }, 10*time.Second, 5*time.Millisecond)
	})
}

// However many services there are, and whatever they have to tell, they can be
// listed.
func TestListsThatWouldBeTooLarge(t *testing.T) {
	f := newFixture(t)
	const many = 1500
	for i := range many {
		s := f.put(fmt.Sprintf("a%04d-%s", i, strings.Repeat("x", 57)), service.Running) // before the others, and names as long as can be
		s.Document = make([]byte, 4<<10)
		s.Status.Error = strings.Repeat("x", maxText)
		s.Status.LastExit = &service.ExitRecord{LastLines: []string{strings.Repeat("x", 1<<20)}}
	}
	list, err := f.gladsheim().ListServices(callContext(t), &gladsheimv1.ListServicesRequest{IncludeHealth: true, IncludeResources: true, IncludeDetails: true})
	require.NoError(t, err)
	require.Len(t, list.GetServices(), many+3)
	require.EqualValues(t, many+1, list.GetRunningCount())
	first, later := list.GetServices()[0], list.GetServices()[many-1]
	require.NotEmpty(t, first.GetProcesses())
	require.NotNil(t, first.GetLastExit())
	require.Empty(t, first.GetLastExit().GetLastLines())
	require.Empty(t, later.GetProcesses())
	require.NotZero(t, later.GetProcessId())

	catalog := gladsheimv1.NewCatalogServiceClient(f.conn)
	var names []string
	for token, more := "", true; more; more = token != "" {
		page, err := catalog.ListDefinitions(callContext(t), &gladsheimv1.ListDefinitionsRequest{PageToken: token})
		require.NoError(t, err)
		for _, d := range page.GetDefinitions() {
			names = append(names, d.GetServiceName())
		}
		token = page.GetNextPageToken()
	}
	require.Len(t, names, many+3)
	require.True(t, slices.IsSorted(names))
	require.Len(t, slices.Compact(names), many+3)
}

func TestAPanicEndsTheAgent(t *testing.T) {
	f := newFixture(t)
	f.agent.Before = func(context.Context, string) error { panic("boom") }
	_, err := f.gladsheim().GetServiceHealth(callContext(t), &gladsheimv1.ServiceHealthRequest{ServiceName: "web"})
	refused(t, err, codes.Internal, "INTERNAL")
	<-f.crash
	s, err := gladsheimv1.NewLogServiceClient(f.conn).Tail(callContext(t), &gladsheimv1.TailRequest{ServiceName: "web"})
	require.NoError(t, err)
	_, err = s.Recv()
	refused(t, err, codes.Internal, "INTERNAL")
	<-f.crash
	require.Contains(t, f.log.String(), "panic=boom")
	require.Contains(t, f.log.String(), "border_test.go")
	require.NotContains(t, err.Error(), "boom")
}

func TestQuestionsAreNotLogged(t *testing.T) {
	f := newFixture(t)
	_, err := f.gladsheim().ListServices(callContext(t), &gladsheimv1.ListServicesRequest{})
	require.NoError(t, err)
	require.Empty(t, f.log.String())
	f.agent.Before = func(context.Context, string) error { return context.DeadlineExceeded }
	_, err = f.gladsheim().GetServiceHealth(callContext(t), &gladsheimv1.ServiceHealthRequest{ServiceName: "web"})
	refused(t, err, codes.DeadlineExceeded, "TIMEOUT")
	require.Empty(t, f.log.String())
	f.agent.Before = func(context.Context, string) error { return net.ErrClosed }
	_, err = f.gladsheim().GetServiceHealth(callContext(t), &gladsheimv1.ServiceHealthRequest{ServiceName: "web"})
	refused(t, err, codes.Internal, "INTERNAL")
	require.Contains(t, f.log.String(), "level=ERROR", "what nobody classified is ours")
}

// An agent that is killed during a change has said who asked for it.
func TestAChangeIsLoggedBeforeAndAfter(t *testing.T) {
	f := newFixture(t)
	var before string
	f.agent.Before = func(_ context.Context, method string) error {
		if method == "Unregister" {
			before = f.log.String()
		}
		return nil
	}
	_, err := gladsheimv1.NewCatalogServiceClient(f.conn).Unregister(callContext(t), &gladsheimv1.UnregisterRequest{ServiceName: "db"})
	require.NoError(t, err)
	self := Peer{UID: uint32(os.Geteuid()), transport: unixSocket}
	who := fmt.Sprintf("method=/gladsheim.v1.CatalogService/Unregister actor=%q pid=%d service=db", self.String(), os.Getpid())
	require.Contains(t, before, `msg="call begun" `+who)
	require.Contains(t, f.log.String(), "msg=call "+who+" outcome=OK")
}

func TestHealthAndReflection(t *testing.T) {
	f := newFixture(t)
	health := grpc_health_v1.NewHealthClient(f.conn)
	h, err := health.Check(callContext(t), &grpc_health_v1.HealthCheckRequest{})
	require.NoError(t, err)
	require.Equal(t, grpc_health_v1.HealthCheckResponse_SERVING, h.GetStatus())
	s, err := reflectionv1.NewServerReflectionClient(f.conn).ServerReflectionInfo(callContext(t))
	require.NoError(t, err)
	require.NoError(t, s.Send(&reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}))
	r, err := s.Recv()
	require.NoError(t, err)
	require.Len(t, r.GetListServicesResponse().GetService(), len(f.server.grpc.GetServiceInfo()))
	require.NoError(t, s.CloseSend())
}
