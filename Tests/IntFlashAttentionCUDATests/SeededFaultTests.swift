import AttentionTestSupport
import IntFlashAttention
import IntFlashAttentionCUDA
import Testing

/// What seeded faults are tried on: every part of the path, in a second each.
///
/// `Tests/CUDASimulator/check_faults` has the faults; each must make one of these fail.
@Suite(.enabled(if: TestDevice.exists), .serialized)
struct SeededFaultTests {
  private func expectReference(
    _ precision: Precision,
    _ kind: InputKind,
    queries: Int,
    keys: Int,
    mask: AttentionMask
  ) throws {
    let shape = try AttentionShape(
      queryHeadCount: 4,
      keyValueHeadCount: 2,
      queryLength: queries,
      keyValueLength: keys,
      headDimension: 64
    )
    let inputs = TestInputs(shape, kind, seed: 13)
    let recipe = try TestDevice.recipe(precision, shape)
    let options = AttentionOptions(mask: mask)
    let reference = try inputs.attend(recipe, options, on: ReferenceBackend())
    let result = try inputs.attend(precision.recipe, options, on: CUDABackend())
    expectSame(result, reference, precision, inputs, "\(kind), \(mask)")
  }

  /// Two blocks of queries against more tiles than there are stages, with a maximum that rises, and
  /// channels whose means must be taken out.
  @Test(arguments: [InputKind.rising, .outlierChannel, .hugeValue])
  func integerLoop(_ kind: InputKind) throws {
    try expectReference(.int8, kind, queries: 131, keys: 850, mask: .causal)
  }

  @Test func floatLoop() throws {
    try expectReference(.bfloat16, .rising, queries: 70, keys: 330, mask: .causal)
  }

  /// One query, whose keys are computed in parts and merged.
  @Test(arguments: [InputKind.normal, .falling])
  func splits(_ kind: InputKind) throws {
    try expectReference(.int8, kind, queries: 1, keys: 2100, mask: .sliding(left: 1700, right: 0))
  }

  /// Tokens that come in two parts, two query heads side by side, in parts that are merged.
  @Test func cache() throws {
    let shape = try AttentionShape(
      batchCount: 2,
      queryHeadCount: 4,
      keyValueHeadCount: 2,
      queryLength: 1152,
      keyValueLength: 1152,
      headDimension: 64
    )
    let inputs = DeviceCache.mirrored(shape, .outlierChannel, seed: 5)
    let device = try DeviceCache(inputs, capacity: 1500)
    try device.append(0..<40)
    try device.append(40..<1152)
    let result = try device.attend(last: 3)
    expectSame(result, try device.reference(last: 3), .int8, device.inputs, "cache")
  }
}
