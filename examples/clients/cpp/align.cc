// An alignment from the contract alone, in C++. See docs/clients.md for what comes before.
//
// Environment: UNMASK_ADDRESS, and UNMASK_TOKEN and UNMASK_TLS_CA (a file) where the server wants
// them.

#include <google/rpc/error_details.pb.h>
#include <google/rpc/status.pb.h>
#include <grpcpp/grpcpp.h>
#include <unmask/v1/catalog.grpc.pb.h>
#include <unmask/v1/diagnosis.grpc.pb.h>
#include <unmask/v1/growth.grpc.pb.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>

namespace pb = unmask::v1;
using std::chrono::seconds;

// Every call of the contract may be repeated: what is registered is found again, what is sampled has
// a seed or a request_id. UNAVAILABLE says that repeating helps.
constexpr char kServiceConfig[] = R"({"methodConfig": [{"name": [{}], "retryPolicy": {
  "maxAttempts": 5, "initialBackoff": "0.2s", "maxBackoff": "3s", "backoffMultiplier": 2,
  "retryableStatusCodes": ["UNAVAILABLE"]}}]})";
constexpr char kQuestion[] =
    "Tom has 12 plums. First he finds 8, then he sells 9. How many plums does he have now?";
// What the student has written when the token comes that we ask about.
constexpr char kPrefix[] = "first, 12 + 8 =";

std::string Environment(const char* name, const char* otherwise = "") {
  const char* value = std::getenv(name);
  return value ? value : otherwise;
}

// With TLS if there is a certificate to trust, with a token if there is one.
std::shared_ptr<grpc::Channel> Connect() {
  const std::string authority = Environment("UNMASK_TLS_CA"), token = Environment("UNMASK_TOKEN");
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!authority.empty()) {
    std::ifstream file(authority);
    if (!file) throw std::runtime_error("cannot read " + authority);
    std::stringstream pem;
    pem << file.rdbuf();
    credentials = grpc::SslCredentials({pem.str(), "", ""});
    if (!token.empty()) {
      credentials = grpc::CompositeChannelCredentials(credentials, grpc::AccessTokenCredentials(token));
    }
  } else if (!token.empty()) {
    throw std::runtime_error("UNMASK_TOKEN would be sent in the clear: give UNMASK_TLS_CA, too");
  }
  grpc::ChannelArguments arguments;
  arguments.SetServiceConfigJSON(kServiceConfig);
  return grpc::CreateCustomChannel(Environment("UNMASK_ADDRESS", "localhost:50051"), credentials, arguments);
}

// A call's context: what limits it.
struct Call : grpc::ClientContext {
  explicit Call(seconds limit = seconds(30)) { set_deadline(std::chrono::system_clock::now() + limit); }
};

const char* Name(grpc::StatusCode code) {
  static const char* const kNames[] = {
      "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
      "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED",
      "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED"};
  return kNames[code];
}

// What the server says of an error: its code, its reason, the fields, when to try again.
std::string Explain(const grpc::Status& error) {
  std::ostringstream text;
  text << Name(error.error_code()) << ": " << error.error_message();
  google::rpc::Status status;
  status.ParseFromString(error.error_details());
  for (const auto& detail : status.details()) {
    google::rpc::ErrorInfo info;
    google::rpc::BadRequest request;
    google::rpc::RetryInfo retry;
    google::rpc::ResourceInfo resource;
    if (detail.UnpackTo(&info)) {
      text << "\n  reason " << info.reason();
    } else if (detail.UnpackTo(&request)) {
      for (const auto& violation : request.field_violations()) {
        text << "\n  field " << violation.field() << ": " << violation.description();
      }
    } else if (detail.UnpackTo(&retry)) {
      const auto& delay = retry.retry_delay();
      text << "\n  try again in " << delay.seconds() + delay.nanos() / 1e9 << " s";
    } else if (detail.UnpackTo(&resource)) {
      text << "\n  there is no " << resource.resource_type() << " " << resource.resource_name();
    }
  }
  return text.str();
}

void Check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(Explain(status));
}

// A student, a teacher and a question. Doing it again finds what is there.
void Register(pb::CatalogService::Stub& catalog, const std::string& models) {
  pb::RegisterPolicyRequest student;
  student.set_name("student");
  student.set_model(models + "/student");
  student.mutable_sampling()->set_temperature(0.7);
  student.set_max_new_tokens(80);
  pb::RegisterPolicyResponse student_answer;
  Call student_call;
  Check(catalog.RegisterPolicy(&student_call, student, &student_answer));

  pb::RegisterTeacherRequest teacher;
  teacher.set_name("strong");
  teacher.set_model(models + "/teacher-strong");
  teacher.add_policies("student");
  pb::RegisterTeacherResponse teacher_answer;
  Call teacher_call;
  Check(catalog.RegisterTeacher(&teacher_call, teacher, &teacher_answer));

  pb::RegisterQuestionsRequest questions;
  auto* question = questions.add_questions();
  question->set_name("plums");
  (*question->mutable_fields())["question"] = kQuestion;
  (*question->mutable_fields())["answer"] = "11";
  questions.set_verifier("hash_answer");
  pb::RegisterQuestionsResponse questions_answer;
  Call questions_call;
  Check(catalog.RegisterQuestions(&questions_call, questions, &questions_answer));
  for (const auto& result : questions_answer.results()) {  // each succeeds or fails by itself
    if (result.has_error()) throw std::runtime_error("the question: " + result.error().message());
  }
}

// Spends 400 rollouts on a node, watching. The request_id makes a second run find the first one's.
void Grow(pb::GrowthService::Stub& growths, const pb::NodeRef& node) {
  pb::StartGrowthRequest request;
  request.set_request_id("five-minutes-cpp");
  *request.add_targets()->mutable_node() = node;
  request.add_teachers("strong");
  request.mutable_budget()->set_rollouts(400);
  pb::StartGrowthResponse started;
  Call start;
  Check(growths.StartGrowth(&start, request, &started));

  // The growth goes on without this stream: one that is lost can be opened again.
  pb::WatchGrowthRequest watched;
  watched.set_growth(started.growth().id());
  Call watch(seconds(600));
  const auto stream = growths.WatchGrowth(&watch, watched);
  pb::WatchGrowthResponse progress;
  pb::Growth growth = started.growth();
  while (stream->Read(&progress)) {
    growth = progress.growth();
    std::cout << "growing: " << growth.rollouts_sampled() << " of " << growth.rollouts_planned()
              << " rollouts" << std::endl;
  }
  Check(stream->Finish());
  if (growth.state() != pb::GROWTH_STATE_SUCCEEDED) {
    throw std::runtime_error("the growth ended as " + pb::GrowthState_Name(growth.state()) + ": " +
                             growth.error());
  }
}

void Run() {
  const auto channel = Connect();
  const std::string models = Environment("UNMASK_MODELS", "examples/models");  // for the server
  const auto catalog = pb::CatalogService::NewStub(channel);
  const auto diagnosis = pb::DiagnosisService::NewStub(channel);
  const auto growths = pb::GrowthService::NewStub(channel);

  Register(*catalog, models);
  pb::NodeRef node;
  node.mutable_prefix()->set_policy("student");
  node.mutable_prefix()->set_question("plums");
  node.mutable_prefix()->set_text(kPrefix);
  Grow(*growths, node);

  pb::GetAlignmentRequest request;
  *request.mutable_node() = node;
  request.add_teachers("strong");
  pb::GetAlignmentResponse answer;
  Call call;
  Check(diagnosis->GetAlignment(&call, request, &answer));
  const auto& strong = answer.alignments(0);
  std::cout << "after '" << kPrefix << "': " << pb::AlignmentStatus_Name(strong.status()) << std::endl;
  if (strong.has_cosine()) {  // absent where there is nothing to score; the status says why
    std::printf("strong: cosine %+.3f [%+.3f, %+.3f]\n", strong.cosine().median(),
                strong.cosine().low(), strong.cosine().high());
  }

  // What a mistake looks like.
  pb::RegisterPolicyRequest wrong;
  wrong.set_model(models + "/student");
  wrong.mutable_sampling()->set_temperature(-1);
  pb::RegisterPolicyResponse nothing;
  Call refused;
  std::cout << "refused, as it should be: "
            << Explain(catalog->RegisterPolicy(&refused, wrong, &nothing)) << std::endl;
}

int main() {
  try {
    Run();
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
