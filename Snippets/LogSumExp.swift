// Attention over two halves of the keys, merged by their log-sum-exps.
import IntFlashAttention

let shape = try AttentionShape(
  queryHeadCount: 4,
  keyValueHeadCount: 4,
  queryLength: 64,
  keyValueLength: 512,
  headDimension: 64
)
func noise(_ shape: [Int]) -> [Float] {
  (0..<shape.reduce(1, *)).map { _ in .random(in: -1...1) }
}
let (query, key, value) = (noise(shape.queryShape), noise(shape.keyShape), noise(shape.valueShape))

/// Output and log-sum-exp over the keys in `range`; keys and values are sliced, not copied.
func attend(keys range: Range<Int>, _ precision: Precision) throws -> ([Float], [Float]) {
  let part = try AttentionShape(
    queryHeadCount: 4,
    keyValueHeadCount: 4,
    queryLength: 64,
    keyValueLength: range.count,
    headDimension: 64
  )
  let strides = [4 * 512 * 64, 512 * 64, 64, 1]
  let offset = range.lowerBound * 64
  var output = try Tensor(.float32, shape: part.outputShape)
  var logSumExp = try Tensor(.float32, shape: part.logSumExpShape)
  try AttentionPlan(part, precision: precision).run(
    query: TensorView(query.span, shape: part.queryShape),
    key: TensorView(key.span, shape: part.keyShape, strides: strides, offset: offset),
    value: TensorView(value.span, shape: part.valueShape, strides: strides, offset: offset),
    into: output.mutableView,
    logSumExp: logSumExp.mutableView
  )
  return (output.copyFloats(), logSumExp.copyFloats())
}

var merged = try Tensor(.float32, shape: shape.outputShape)
// Nothing so far: every log-sum-exp is −∞.
var mergedSum = try Tensor(
  [Float](repeating: -.infinity, count: shape.logSumExpShape.reduce(1, *)),
  shape: shape.logSumExpShape
)
for keys in [0..<256, 256..<512] {
  let (part, partSum) = try attend(keys: keys, .int8)
  try mergeAttention(
    TensorView(part.span, shape: shape.outputShape),
    logSumExp: TensorView(partSum.span, shape: shape.logSumExpShape),
    into: merged.mutableView,
    logSumExp: mergedSum.mutableView
  )
}

let (whole, _) = try attend(keys: 0..<512, .int8)
let (exact, _) = try attend(keys: 0..<512, .float32)
print("in one piece  relative L1 \(AccuracyReport(whole, against: exact).relativeL1)")
print("merged        relative L1 \(AccuracyReport(merged.copyFloats(), against: exact).relativeL1)")
