package api

import (
	"time"

	"google.golang.org/grpc/health/grpc_health_v1"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionv1alpha "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"

	gladsheimv1 "github.com/gladsheim/gladsheim/proto/gladsheim/v1"
)

// method is what the server knows of one method before it runs it.
type method struct {
	change bool // it changes something: logged, with who asked
	local  bool // over the socket only
	// patience is how long a call may take whose caller set no deadline; 0
	// leaves it to the handler.
	patience time.Duration
}

const answerTimeout = 30 * time.Second

var (
	question = method{patience: answerTimeout}
	order    = method{change: true, patience: answerTimeout}
	// A lifecycle call takes as long as the definition allows.
	lifecycle = method{change: true}
	// A stream lasts until its caller leaves.
	stream = method{}
	hidden = method{local: true}
)

// methods is everything that is served. What is not in it is refused, whatever
// is registered with gRPC. The key is the method as gRPC has routed it, never
// the path as it was sent.
var methods = map[string]method{
	gladsheimv1.GladsheimService_StartService_FullMethodName:           lifecycle,
	gladsheimv1.GladsheimService_StopService_FullMethodName:            lifecycle,
	gladsheimv1.GladsheimService_RestartService_FullMethodName:         lifecycle,
	gladsheimv1.GladsheimService_GetServiceStatus_FullMethodName:       question,
	gladsheimv1.GladsheimService_ListServices_FullMethodName:           question,
	gladsheimv1.GladsheimService_GetServiceHealth_FullMethodName:       question,
	gladsheimv1.GladsheimService_SubscribeServiceHealth_FullMethodName: stream,
	gladsheimv1.GladsheimService_GetResourceUsage_FullMethodName:       question,
	gladsheimv1.GladsheimService_SetResourceLimits_FullMethodName:      order,
	gladsheimv1.GladsheimService_GetResourceLimits_FullMethodName:      question,

	gladsheimv1.RuntimeService_Kill_FullMethodName:            lifecycle,
	gladsheimv1.RuntimeService_RollingRestart_FullMethodName:  lifecycle,
	gladsheimv1.RuntimeService_Signal_FullMethodName:          order,
	gladsheimv1.RuntimeService_Freeze_FullMethodName:          order,
	gladsheimv1.RuntimeService_Thaw_FullMethodName:            order,
	gladsheimv1.RuntimeService_ListExits_FullMethodName:       question,
	gladsheimv1.RuntimeService_GetDependencies_FullMethodName: question,
	gladsheimv1.RuntimeService_ListCrashes_FullMethodName:     question,
	gladsheimv1.RuntimeService_Reload_FullMethodName:          lifecycle,

	gladsheimv1.RuntimeService_CheckNow_FullMethodName:   question,
	gladsheimv1.RuntimeService_ListChecks_FullMethodName: question,

	gladsheimv1.RuntimeService_GetUsageHistory_FullMethodName: question,
	gladsheimv1.RuntimeService_WatchUsage_FullMethodName:      stream,
	gladsheimv1.RuntimeService_Recommend_FullMethodName:       question,

	gladsheimv1.CatalogService_Register_FullMethodName:        order,
	gladsheimv1.CatalogService_Unregister_FullMethodName:      order,
	gladsheimv1.CatalogService_GetDefinition_FullMethodName:   question,
	gladsheimv1.CatalogService_ListDefinitions_FullMethodName: question,
	gladsheimv1.CatalogService_Apply_FullMethodName:           order,

	gladsheimv1.EventService_Watch_FullMethodName: stream,
	gladsheimv1.LogService_Tail_FullMethodName:    stream,

	gladsheimv1.HostService_GetHost_FullMethodName:   question,
	gladsheimv1.HostService_Doctor_FullMethodName:    question,
	gladsheimv1.HostService_GetConfig_FullMethodName: question,

	grpc_health_v1.Health_Check_FullMethodName: question,
	grpc_health_v1.Health_List_FullMethodName:  question,
	grpc_health_v1.Health_Watch_FullMethodName: stream,

	reflectionv1.ServerReflection_ServerReflectionInfo_FullMethodName:      hidden,
	reflectionv1alpha.ServerReflection_ServerReflectionInfo_FullMethodName: hidden,
}
