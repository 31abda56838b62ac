// An alignment from the contract alone, in Go. See docs/clients.md for what comes before.
//
// Environment: UNMASK_ADDRESS, and UNMASK_TOKEN and UNMASK_TLS_CA (a file) where the server wants
// them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	pb "example.org/align/gen/unmask/v1"
)

// Every call of the contract may be repeated: what is registered is found again, what is sampled has
// a seed or a request_id. UNAVAILABLE says that repeating helps. (Before its version 1.40 grpc-go
// also wants GRPC_GO_RETRY=on in the environment.)
const serviceConfig = `{"methodConfig": [{"name": [{}], "retryPolicy": {
  "maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "3s", "backoffMultiplier": 2,
  "retryableStatusCodes": ["UNAVAILABLE"]}}]}`

const question = "Tom has 12 plums. First he finds 8, then he sells 9. How many plums does he have now?"

// What the student has written when the token comes that we ask about.
const prefix = "first, 12 + 8 ="

// Deadlines: of calls that answer at once, and of one that watches.
const (
	short = 30 * time.Second
	long  = 10 * time.Minute
)

func environment(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}

// bearer sends a token with every call, never in the clear.
type bearer string

func (token bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

func (bearer) RequireTransportSecurity() bool { return true }

// connect uses TLS if there is a certificate to trust, and a token if there is one.
func connect() (*grpc.ClientConn, error) {
	options := []grpc.DialOption{grpc.WithDefaultServiceConfig(serviceConfig)}
	if authority := os.Getenv("UNMASK_TLS_CA"); authority != "" {
		trusted, err := credentials.NewClientTLSFromFile(authority, "")
		if err != nil {
			return nil, err
		}
		options = append(options, grpc.WithTransportCredentials(trusted))
	} else {
		options = append(options, grpc.WithInsecure())
	}
	if token := os.Getenv("UNMASK_TOKEN"); token != "" {
		options = append(options, grpc.WithPerRPCCredentials(bearer(token)))
	}
	return grpc.Dial(environment("UNMASK_ADDRESS", "localhost:50051"), options...)
}

// explain tells what the server says of an error: its code, its reason, the fields, when to try again.
func explain(err error) string {
	failed, ok := status.FromError(err)
	if !ok {
		return err.Error()
	}
	lines := []string{fmt.Sprintf("%s: %s", failed.Code(), failed.Message())}
	for _, detail := range failed.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			lines = append(lines, "  reason "+detail.Reason)
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				lines = append(lines, fmt.Sprintf("  field %s: %s", violation.Field, violation.Description))
			}
		case *errdetails.RetryInfo:
			lines = append(lines, fmt.Sprintf("  try again in %s", detail.RetryDelay.AsDuration()))
		case *errdetails.ResourceInfo:
			lines = append(lines, fmt.Sprintf("  there is no %s %s", detail.ResourceType, detail.ResourceName))
		}
	}
	return strings.Join(lines, "\n")
}

// register makes a student, a teacher and a question. Doing it again finds what is there.
func register(ctx context.Context, catalog pb.CatalogServiceClient, models string) error {
	ctx, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	temperature := 0.7
	if _, err := catalog.RegisterPolicy(ctx, &pb.RegisterPolicyRequest{
		Name:         "student",
		Model:        models + "/student",
		Sampling:     &pb.Sampling{Temperature: &temperature},
		MaxNewTokens: 80,
	}); err != nil {
		return err
	}
	if _, err := catalog.RegisterTeacher(ctx, &pb.RegisterTeacherRequest{
		Name:     "strong",
		Model:    models + "/teacher-strong",
		Policies: []string{"student"},
	}); err != nil {
		return err
	}
	registered, err := catalog.RegisterQuestions(ctx, &pb.RegisterQuestionsRequest{
		Questions: []*pb.QuestionSpec{{
			Name:   "plums",
			Fields: map[string]string{"question": question, "answer": "11"},
		}},
		Verifier: "hash_answer",
	})
	if err != nil {
		return err
	}
	for _, result := range registered.Results { // each succeeds or fails by itself
		if refused := result.GetError(); refused != nil {
			return fmt.Errorf("question %d: %s", result.Index, refused.Message)
		}
	}
	return nil
}

// grow spends 400 rollouts on a node. The RequestId makes a second run find the first one's growth.
func grow(ctx context.Context, growths pb.GrowthServiceClient, node *pb.NodeRef) error {
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	rollouts := int64(400)
	started, err := growths.StartGrowth(ctx, &pb.StartGrowthRequest{
		RequestId: "five-minutes-go",
		Targets:   []*pb.GrowthTarget{{Target: &pb.GrowthTarget_Node{Node: node}}},
		Teachers:  []string{"strong"},
		Budget:    &pb.Budget{Rollouts: &rollouts},
	})
	if err != nil {
		return err
	}
	// The growth goes on without this stream: one that is lost can be opened again.
	stream, err := growths.WatchGrowth(ctx, &pb.WatchGrowthRequest{Growth: started.Growth.Id})
	if err != nil {
		return err
	}
	growth := started.Growth
	for {
		progress, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		growth = progress.Growth
		fmt.Printf("growing: %d of %d rollouts\n", growth.RolloutsSampled, growth.RolloutsPlanned)
	}
	if growth.State != pb.GrowthState_GROWTH_STATE_SUCCEEDED {
		return fmt.Errorf("the growth ended as %s: %s", growth.State, growth.Error)
	}
	return nil
}

func run(ctx context.Context) error {
	models := environment("UNMASK_MODELS", "examples/models") // where the server finds them
	connection, err := connect()
	if err != nil {
		return err
	}
	defer connection.Close()
	catalog := pb.NewCatalogServiceClient(connection)
	diagnosis := pb.NewDiagnosisServiceClient(connection)

	if err := register(ctx, catalog, models); err != nil {
		return err
	}
	node := &pb.NodeRef{Node: &pb.NodeRef_Prefix{Prefix: &pb.PrefixNode{
		Policy:   "student",
		Question: "plums",
		Prefix:   &pb.PrefixNode_Text{Text: prefix},
	}}}
	if err := grow(ctx, pb.NewGrowthServiceClient(connection), node); err != nil {
		return err
	}

	asking, cancel := context.WithTimeout(ctx, short)
	defer cancel()
	answer, err := diagnosis.GetAlignment(asking, &pb.GetAlignmentRequest{Node: node, Teachers: []string{"strong"}})
	if err != nil {
		return err
	}
	strong := answer.Alignments[0]
	fmt.Printf("after %q: %s\n", prefix, strong.Status)
	if cosine := strong.Cosine; cosine != nil { // absent where there is nothing to score; the status says why
		fmt.Printf("strong: cosine %+.3f [%+.3f, %+.3f]\n", cosine.Median, cosine.Low, cosine.High)
	}

	// What a mistake looks like.
	negative := -1.0
	_, err = catalog.RegisterPolicy(asking, &pb.RegisterPolicyRequest{
		Model: models + "/student", Sampling: &pb.Sampling{Temperature: &negative},
	})
	fmt.Println("refused, as it should be:", explain(err))
	return nil
}

func main() {
	if err := run(context.Background()); err != nil {
		if status.Code(err) == codes.Unknown {
			fmt.Fprintln(os.Stderr, err)
		} else {
			fmt.Fprintln(os.Stderr, explain(err))
		}
		os.Exit(1)
	}
}
