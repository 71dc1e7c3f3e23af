import AttentionTestSupport
import IntFlashAttention
import Testing

/// Inputs that break simpler recipes, against exact attention.
@Suite struct RobustnessTests {
  /// Layer 15 of a language model: an attention sink and strong key channels.
  private func makeActivations(length: Int = 300) throws -> TestInputs {
    try vectors("activations_l15", tokens: length).inputs
  }

  private func makeInputs(_ kind: InputKind = .sink, length: Int = 300) throws -> TestInputs {
    let shape = try AttentionShape(
      queryHeadCount: 2,
      keyValueHeadCount: 1,
      queryLength: length,
      keyValueLength: length,
      headDimension: 32
    )
    return TestInputs(shape, kind, seed: 21)
  }

  private func error(
    _ inputs: TestInputs,
    _ precision: Precision,
    _ options: AttentionOptions
  ) throws -> Double {
    let result = try inputs.attend(precision.recipe, options, on: CPUBackend())
    let exact = try inputs.exact(options)
    #expect(result.output.allSatisfy { $0.isFinite })
    return AccuracyReport(result.output, against: exact.output).relativeL1
  }

  private func bound(_ precision: Precision) -> Double { precision.robustnessBound }

  static let masks: [AttentionMask] = [.full, .causal]

  /// Without a floor on V's scale the sink's probability rounds to code 0: 86 % error.
  @Test(arguments: masks)
  func aSinkWithoutValue(_ mask: AttentionMask) throws {
    var inputs = try makeActivations()
    for channel in 0..<64 { inputs.value[channel] = 0 }
    #expect(try error(inputs, .int8, AttentionOptions(mask: mask)) <= bound(.int8))
    for index in 0..<256 * 64 { inputs.value[index] = 0 }
    #expect(try error(inputs, .int8, AttentionOptions(mask: mask)) <= bound(.int8))
  }

  /// Numerator and denominator round alike, so a constant comes out exact.
  @Test(arguments: [Precision.int8, .int4], masks)
  func constantValuesAreExact(_ precision: Precision, _ mask: AttentionMask) throws {
    for constant: Float in [1, -3.5, 0.1] {
      var inputs = try makeInputs()
      inputs.value = inputs.value.map { _ in constant }
      #expect(try error(inputs, precision, AttentionOptions(mask: mask)) <= precision.constantBound)
    }
  }

  @Test(arguments: [Float(50), 200, 500, 2000], masks)
  func oneTokenOfHugeValue(_ factor: Float, _ mask: AttentionMask) throws {
    var inputs = try makeActivations()
    for channel in 0..<64 { inputs.value[150 * 64 + channel] *= factor }
    #expect(try error(inputs, .int8, AttentionOptions(mask: mask)) <= bound(.int8))
  }

  @Test(arguments: masks)
  func sharpWeights(_ mask: AttentionMask) throws {
    var inputs = try makeActivations()
    inputs.query = inputs.query.map { 2 * $0 }
    inputs.key = inputs.key.map { 2 * $0 }
    #expect(try error(inputs, .int8, AttentionOptions(mask: mask)) <= bound(.int8))
  }

  @Test(arguments: [1, 2, 63, 65, 127, 129, 277], masks)
  func raggedActivations(_ length: Int, _ mask: AttentionMask) throws {
    let inputs = try makeActivations(length: length)
    #expect(try error(inputs, .int8, AttentionOptions(mask: mask)) <= bound(.int8))
  }

  /// Softmax ignores what all keys share; so must the error.
  @Test(arguments: [Precision.int8, .int8QueryKey], masks)
  func aChannelThatAllKeysShare(_ precision: Precision, _ mask: AttentionMask) throws {
    var inputs = try makeInputs()
    let options = AttentionOptions(mask: mask)
    let before = try error(inputs, precision, options)
    for token in 0..<300 { inputs.key[token * 32 + 5] += 60 }
    #expect(try error(inputs, precision, options) <= 1.5 * before + 1e-3)
  }

  @Test(arguments: CPUBackendTests.precisions, masks)
  func zeroQueriesAverageTheValues(_ precision: Precision, _ mask: AttentionMask) throws {
    var inputs = try makeInputs()
    inputs.query = inputs.query.map { _ in 0 }
    #expect(try error(inputs, precision, AttentionOptions(mask: mask)) <= bound(precision))
  }

  @Test(arguments: CPUBackendTests.precisions)
  func zeroValuesGiveExactZeros(_ precision: Precision) throws {
    var inputs = try makeInputs()
    inputs.value = inputs.value.map { _ in 0 }
    let result = try inputs.attend(precision.recipe, on: CPUBackend())
    #expect(result.output.allSatisfy { $0 == 0 })
  }

  @Test(arguments: CPUBackendTests.precisions)
  func oneTokenReturnsItsValue(_ precision: Precision) throws {
    let inputs = try makeInputs(length: 1)
    #expect(try error(inputs, precision, AttentionOptions(mask: .causal)) <= bound(precision))
  }

  @Test(arguments: CPUBackendTests.precisions, masks)
  func constantKeys(_ precision: Precision, _ mask: AttentionMask) throws {
    let inputs = try makeInputs(.equalScores)
    #expect(try error(inputs, precision, AttentionOptions(mask: mask)) <= bound(precision))
  }

  /// Row i matches key i / 3 alone, far left of the diagonal tile.
  ///
  /// A kernel that loses the running
  /// maximum between off-diagonal and diagonal tiles attends to the latter only.
  @Test(arguments: CPUBackendTests.precisions)
  func offDiagonalTilesCarryTheAnswer(_ precision: Precision) throws {
    var inputs = try makeInputs(.normal, length: 400)
    inputs.key = inputs.key.map { $0 < 0 ? -1 : 1 }
    for head in 0..<2 {
      for row in 0..<400 {
        for channel in 0..<32 {
          inputs.query[(head * 400 + row) * 32 + channel] = 3 * inputs.key[row / 3 * 32 + channel]
        }
      }
    }
    #expect(try error(inputs, precision, AttentionOptions(mask: .causal)) <= 2 * bound(precision))
  }

  @Test(arguments: CPUBackendTests.precisions, [InputKind.rising, .falling])
  func scoresThatRiseOrFallFromTileToTile(_ precision: Precision, _ kind: InputKind) throws {
    let inputs = try makeInputs(kind)
    #expect(try error(inputs, precision, AttentionOptions(mask: .causal)) <= 3 * bound(precision))
  }

  /// Fails where centring the keys is not undone in the log-sum-exp.
  @Test(arguments: CPUBackendTests.precisions)
  func logSumExpIsThatOfTheUnshiftedLogits(_ precision: Precision) throws {
    var inputs = try makeInputs()
    for token in 0..<300 { inputs.key[token * 32 + 5] += 4 }
    for options in [AttentionOptions(mask: .causal), AttentionOptions(softcap: 4, mask: .full)] {
      let result = try inputs.attend(precision.recipe, options, on: CPUBackend())
      let exact = try inputs.exact(options)
      for (a, b) in zip(result.logSumExp, exact.logSumExp) {
        #expect((a - b).magnitude <= precision.logSumExpBound)
      }
    }
  }

  /// The output scales with the values, exactly for powers of two, down to values near 10⁻²⁰.
  @Test func outputsScaleWithTheValues() throws {
    let inputs = try makeInputs()
    let plain = try inputs.attend(Precision.int8.recipe, on: CPUBackend())
    for power in [-66, 30] {
      let factor = Float(sign: .plus, exponent: power, significand: 1)
      var scaled = inputs
      scaled.value = inputs.value.map { $0 * factor }
      let result = try scaled.attend(Precision.int8.recipe, on: CPUBackend())
      #expect(result.output == plain.output.map { $0 * factor })
    }
  }
}
