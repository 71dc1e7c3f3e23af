// What each part of a recipe buys, on keys with a channel that all tokens share.
import IntFlashAttention

let shape = try AttentionShape(
  queryHeadCount: 2,
  keyValueHeadCount: 1,
  queryLength: 200,
  keyValueLength: 200,
  headDimension: 64
)
func normal(_ shape: [Int]) -> [Float] {
  // The sum of twelve uniform numbers, less six, is close to normal.
  (0..<shape.reduce(1, *)).map { _ in (0..<12).reduce(-6) { sum, _ in sum + .random(in: 0...1) } }
}
let (query, value) = (normal(shape.queryShape), normal(shape.valueShape))
let key = normal(shape.keyShape).enumerated().map { $0 % 64 == 5 ? $1 + 20 : $1 }

func run(_ recipe: QuantizationRecipe, on backend: any AttentionBackend) throws -> [Float] {
  let plan = try AttentionPlan(shape, recipe: recipe, on: backend)
  var output = try Tensor(.float32, shape: shape.outputShape)
  try plan.run(
    query: TensorView(query.span, shape: shape.queryShape),
    key: TensorView(key.span, shape: shape.keyShape),
    value: TensorView(value.span, shape: shape.valueShape),
    into: output.mutableView
  )
  return output.copyFloats()
}

// `ReferenceBackend` computes every valid recipe; `CPUBackend` those that have a kernel.
let exact = try run(Precision.float32.recipe, on: ReferenceBackend())
func show(_ name: String, _ change: (inout QuantizationRecipe) -> Void) throws {
  var recipe = Precision.int8.recipe
  change(&recipe)
  let error = AccuracyReport(try run(recipe, on: ReferenceBackend()), against: exact)
  print("\((100 * error.relativeL1 * 1000).rounded() / 1000) %  \(name)")
}

try show("int8") { _ in }
try show("keys not centred") { $0.centersKey = false }
try show("queries and keys not rotated") { $0.rotatesQueryAndKey = false }
try show("neither") {
  $0.centersKey = false
  $0.rotatesQueryAndKey = false
}
try show("keys with a scale per 64 tokens") { $0.key = .int8(.block(64)) }
try show("keys in four bits") {
  $0.centersKey = false
  $0.key = .int4Progressive(tokens: 32, channels: 1)
}
