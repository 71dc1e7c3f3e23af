import IntFlashAttention
import Testing
import intfa

@Suite struct SyntheticInputTests {
  private func shape() throws -> AttentionShape {
    try AttentionShape(
      batchCount: 2,
      queryHeadCount: 2,
      keyValueHeadCount: 1,
      queryLength: 200,
      keyValueLength: 300,
      headDimension: 32
    )
  }

  private func moments(_ values: [Float]) -> (mean: Double, variance: Double) {
    let count = Double(values.count)
    let mean = values.reduce(0.0) { $0 + Double($1) } / count
    let variance = values.reduce(0.0) { $0 + (Double($1) - mean) * (Double($1) - mean) } / count
    return (mean, variance)
  }

  @Test func sequenceOfTheGeneratorIsFixed() {
    var random = SeededRandom(seed: 0)
    // The reference sequence of SplitMix64.
    #expect(random.next() == 0xE220_A839_7B1D_CDAF)
    #expect(random.next() == 0x6E78_9E6A_A1B9_65F4)
  }

  @Test func normalHasMeanZeroAndVarianceOne() throws {
    let operands = try SyntheticInput.normal.operands(shape(), seed: 3)
    for values in [operands.query.copyFloats(), operands.key.copyFloats()] {
      let (mean, variance) = moments(values)
      #expect(mean.magnitude < 0.03)
      #expect((variance - 1).magnitude < 0.05)
      #expect(values.contains { $0.magnitude > 3 })
    }
  }

  @Test func uniformFillsItsRange() throws {
    let operands = try SyntheticInput.uniform.operands(shape(), seed: 3)
    let values = operands.value.copyFloats()
    #expect(values.allSatisfy { $0 >= -0.5 && $0 <= 0.5 })
    let (mean, variance) = moments(values)
    #expect(mean.magnitude < 0.01)
    #expect((variance - 1.0 / 12).magnitude < 0.003)
  }

  @Test func outliersHaveChannelsAndASink() throws {
    let operands = try SyntheticInput.outliers.operands(shape(), seed: 3)
    let key = operands.key.copyFloats()
    let outlying = stride(from: 3, to: key.count, by: 32).map { key[$0] }
    #expect((moments(outlying).mean - 8).magnitude < 0.3)
    let value = operands.value.copyFloats()
    let first = value[0..<32].map(\.magnitude).max() ?? 1
    #expect(first < 0.25)
  }

  @Test(arguments: SyntheticInput.allCases)
  func seedsAndTypesDecideTheNumbers(kind: SyntheticInput) throws {
    let first = try kind.operands(shape(), seed: 5)
    let again = try kind.operands(shape(), seed: 5)
    let other = try kind.operands(shape(), seed: 6)
    let half = try kind.operands(shape(), seed: 5, elementType: .float16)
    #expect(first.key.copyFloats() == again.key.copyFloats())
    #expect(first.key.copyFloats() != other.key.copyFloats())
    #expect(first.key.copyFloats() == half.key.copyFloats())
  }
}
